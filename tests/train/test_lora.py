"""A run of adapters goes on from its own checkpoint, needs its model for that, and is used like any other."""

import os
from pathlib import Path

import pytest
import torch

from megalm.checkpoint import find_checkpoint, load_weights, read_config
from megalm.engine.build import build_engine
from megalm.errors import UserError
from megalm.model.quantized import WeightForm, round_trip
from megalm.parallel.layout import create_layout
from megalm.testing import RankError
from tests.checkpoint.stored import stored_tensors
from tests.train.runs import TP2, run_config, step_lines, train, train_in_world
from tests.worlds import in_world

LORA = ("lora.rank=4", "lora.alpha=32")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    directory: Path = tmp_path_factory.mktemp("base")
    train_in_world(1, run_config(directory, data, "train.exit_after_steps=1"))
    return directory


def test_a_run_that_was_stopped_goes_on_under_another_layout(tmp_path: Path, data: Path, base: Path) -> None:
    options = (*LORA, f"run.load={base}")
    train_in_world(1, run_config(tmp_path / "whole", data, *options))
    train_in_world(1, run_config(tmp_path / "parts", data, *options, "train.exit_after_steps=3"))
    train_in_world(2, run_config(tmp_path / "parts", data, *options, TP2))
    whole, parts = (step_lines(tmp_path / name) for name in ("whole", "parts"))
    assert [line["loss"] for line in parts] == pytest.approx([line["loss"] for line in whole], rel=1e-5)
    tensors = stored_tensors(find_checkpoint(tmp_path / "parts"))
    assert all(".lora." in name for name in tensors)


def test_a_run_on_deepspeed_goes_on_on_megatron(tmp_path: Path, data: Path, base: Path) -> None:
    options = (*LORA, f"run.load={base}", "optimizer.adam_eps=1e-5")
    train_in_world(1, run_config(tmp_path / "whole", data, *options))
    sharded = ("engine=deepspeed", "parallel.zero_stage=3", "train.exit_after_steps=4")
    train_in_world(2, run_config(tmp_path / "parts", data, *options, *sharded))
    tensors = stored_tensors(find_checkpoint(tmp_path / "parts"))
    assert tensors and all(".lora." in name for name in tensors)
    train_in_world(2, run_config(tmp_path / "parts", data, *options, TP2))
    whole, parts = (step_lines(tmp_path / name) for name in ("whole", "parts"))
    assert [line["loss"] for line in parts] == pytest.approx([line["loss"] for line in whole], rel=1e-5)


def test_another_base_or_rank_is_another_run(tmp_path: Path, data: Path, base: Path) -> None:
    options = (*LORA, f"run.load={base}", "train.exit_after_steps=1")
    train_in_world(1, run_config(tmp_path, data, *options))
    with pytest.raises((UserError, RankError), match=r"lora\.rank 4, this one has 8"):
        train_in_world(1, run_config(tmp_path, data, *options, "lora.rank=8"))
    with pytest.raises((UserError, RankError), match=r"lora\.rank 4, this one has 0"):
        train_in_world(1, run_config(tmp_path, data, "lora.rank=0"))
    with pytest.raises((UserError, RankError), match="holds adapters itself; merge them"):
        train_in_world(1, run_config(tmp_path / "more", data, *LORA, f"run.load={tmp_path}"))


@in_world(1)
def test_base_is_the_checkpoint_that_the_adapters_began_with(tmp_path: Path, data: Path) -> None:
    """Its run goes on, and whoever goes on with the adapters, or uses them, stands elsewhere."""
    before = Path.cwd()
    first = tmp_path / "base" / "checkpoints" / "step_00000001"
    options = (*LORA, "lora.quantize_base=nf4", "lora.quantize_group_size=8")
    train(run_config(tmp_path / "base", data, "train.exit_after_steps=1"))
    try:
        os.chdir(tmp_path)
        train(run_config(tmp_path / "run", data, *options, "run.load=base", "train.exit_after_steps=3"))
        train(run_config(tmp_path / "base", data, "train.exit_after_steps=1"))
        train(run_config(tmp_path / "run", data, *options, "run.load=base"))
    finally:
        os.chdir(before)
    train(run_config(tmp_path / "whole", data, *options, f"run.load={first}"))
    assert step_lines(tmp_path / "run") == step_lines(tmp_path / "whole")
    assert read_config(find_checkpoint(tmp_path / "run")).run.load == str(first.resolve())
    with pytest.raises(UserError, match="a run with run.load .*step_00000001, this one has .*step_00000002"):
        second = first.with_name("step_00000002")
        train(run_config(tmp_path / "run", data, *options, f"run.load={second}"))


@in_world(1)
def test_quantised_base_is_the_checkpoint_s_whatever_the_run_s_format(tmp_path: Path, data: Path) -> None:
    """A bf16 run's checkpoint holds fp32 masters too; merging reads its weights, and so must training."""
    train(run_config(tmp_path, data, "train.exit_after_steps=1", "precision.dtype=bf16"))
    checkpoint = find_checkpoint(tmp_path)
    stored = stored_tensors(checkpoint)
    quantized = ("lora.quantize_base=nf4", "lora.quantize_group_size=8", f"run.load={tmp_path}")
    config = run_config(tmp_path / "adapters", data, *LORA, *quantized)
    engine = build_engine(config, create_layout(config.parallel))
    load_weights(engine, checkpoint)
    for number, layer in enumerate(engine.model.decoder.layers):
        weight = stored["decoder.layers.mlp.linear_fc2.weight"][number]
        assert weight.dtype == torch.bfloat16
        assert torch.equal(
            layer.mlp.linear_fc2.quantized.dequantize(), round_trip(weight, WeightForm("nf4", 8))
        )
