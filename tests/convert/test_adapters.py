"""Adapters are saved alone, load under any layout, and give the same logits merged, in PEFT, and beside their model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from megalm.checkpoint import find_checkpoint, load_training_state, load_weights, read_config
from megalm.checkpoint.metadata import read_tensors
from megalm.checkpoint.write import CheckpointWriter
from megalm.config import parse_config
from megalm.convert.merge import merge_checkpoints
from megalm.convert.run import convert
from megalm.engine.base import MicroBatch
from megalm.engine.build import build_engine
from megalm.errors import UserError
from megalm.parallel.layout import create_layout
from megalm.testing import run_distributed
from megalm.train.pretrain import NextTokenLoss
from tests.convert.hub import VOCABULARY, save

LENGTH, SEED_OF_BASE = 24, 3


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (2, LENGTH + 1), generator=torch.Generator().manual_seed(seed))


def train_adapters(
    base: Path, run_directory: Path, layout: dict[str, int], lora: dict[str, Any], dtype: str = "fp32"
) -> None:
    """Two steps, large enough to show, then a checkpoint."""
    model = read_config(base).model.model_dump()
    config = parse_config(
        {
            "run": {"load": str(base)},
            "model": {**model, "hidden_dropout": 0.0, "attention_dropout": 0.0},
            "lora": {"rank": 4, "alpha": 12, **lora},
            "batch": {"seq_length": LENGTH, "micro_batch_size": 2, "global_batch_size": 2},
            "parallel": layout,
            "precision": {"dtype": dtype},
        }
    )
    engine = build_engine(config, create_layout(config.parallel))
    load_weights(engine, base)
    for step in range(2):
        window = tokens(step)
        batch = MicroBatch(window[:, :-1], window[:, 1:], torch.ones(2, LENGTH))
        engine.step([batch], NextTokenLoss(), 0.05)
    writer = CheckpointWriter(run_directory, config, engine)
    writer.save(2, {"step": 2, "counters": engine.counters})
    writer.finish()


def unmerged_logits(run_directory: Path) -> Tensor:
    """By the model with its adapters, in one process, through the training state."""
    checkpoint = find_checkpoint(run_directory)
    config = read_config(checkpoint)
    config.parallel.tensor_model_parallel_size = config.parallel.pipeline_model_parallel_size = 1
    config.parallel.sequence_parallel = False
    engine = build_engine(config, create_layout(config.parallel))
    load_weights(engine, checkpoint)
    load_training_state(engine, checkpoint)  # which leaves the model below as it is
    with torch.no_grad():
        return engine.model.eval()(tokens()[:, :-1])


@torch.no_grad()
def hub_logits(folder: Path, adapters: Path | None = None) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    if adapters is not None:
        model = PeftModel.from_pretrained(model, adapters)
    return model.eval()(tokens()[:, :-1]).logits


CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama3", {"scaling": "rslora"}),
    ("gpt2", {}),
    ("mixtral", {"experts": True}),
    ("mixtral", {"experts": True, "targets": ["linear_proj", "linear_fc2"], "scaling": "rslora"}),
    ("qwen3", {"targets": ["linear_qkv"]}),
]


@pytest.mark.parametrize(("name", "lora"), CASES)
def test_merged_and_in_peft_logits_are_those_of_the_adapters(
    name: str, lora: dict[str, Any], tmp_path: Path
) -> None:
    hub = save(name, tmp_path / "hf")
    convert(hub, tmp_path / "base", compare=False)
    layout = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}
    run_distributed(train_adapters, 4, tmp_path / "base", tmp_path / "run", layout, lora)
    held = {key.removeprefix("optimizer.") for key in read_tensors(find_checkpoint(tmp_path / "run"))}
    assert held and all(".lora." in key for key in held)

    (expected,) = run_distributed(unmerged_logits, 1, tmp_path / "run")
    assert float((expected - hub_logits(hub)).abs().max()) > 0.05  # the adapters do something
    convert(tmp_path / "run", tmp_path / "merged")
    torch.testing.assert_close(hub_logits(tmp_path / "merged"), expected, rtol=0, atol=2e-5)
    report = convert(tmp_path / "run", tmp_path / "peft", to="peft", like=hub)
    assert report["difference"] <= 2e-5
    torch.testing.assert_close(hub_logits(hub, tmp_path / "peft"), expected, rtol=0, atol=2e-5)
    merge_checkpoints([tmp_path / "run"], tmp_path / "whole")
    assert not any(".lora." in key for key in read_tensors(tmp_path / "whole"))
    convert(tmp_path / "whole", tmp_path / "again", family=name.rstrip("3") if name == "llama3" else name)
    torch.testing.assert_close(hub_logits(tmp_path / "again"), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("form", ["int4", "nf4"])
def test_merged_logits_are_those_beside_the_quantised_base(form: str, tmp_path: Path) -> None:
    """Trained under TP2, read in one process and merged: all have the base that the codes stand for, and not the other."""
    hub = save("llama3", tmp_path / "hf")
    convert(hub, tmp_path / "base", compare=False)
    lora = {"quantize_base": form, "quantize_group_size": 16}
    run_distributed(
        train_adapters, 2, tmp_path / "base", tmp_path / "run", {"tensor_model_parallel_size": 2}, lora
    )
    assert all(".lora." in key for key in read_tensors(find_checkpoint(tmp_path / "run")))
    (expected,) = run_distributed(unmerged_logits, 1, tmp_path / "run")
    convert(tmp_path / "run", tmp_path / "merged")
    torch.testing.assert_close(hub_logits(tmp_path / "merged"), expected, rtol=0, atol=2e-5)
    convert(tmp_path / "run", tmp_path / "peft", to="peft", like=hub)
    assert float((hub_logits(hub, tmp_path / "peft") - expected).abs().max()) > 1e-3


def test_what_runs_in_bf16_wrote_is_compared_in_its_own_precision(tmp_path: Path) -> None:
    """Their optimizer keeps the weights in fp32, too, and merging rounds once more: neither is a wrong conversion."""
    convert(save("llama3", tmp_path / "hf"), tmp_path / "base", compare=False)
    run_distributed(train_adapters, 1, tmp_path / "base", tmp_path / "run", {}, {"rank": 0}, "bf16")
    base = find_checkpoint(tmp_path / "run")
    run_distributed(train_adapters, 1, base, tmp_path / "lora", {}, {}, "bf16")
    assert convert(tmp_path / "run", tmp_path / "hub")["difference"] <= 1e-5
    asked: list[tuple[str, dict[str, Any]]] = [
        ("run", {"dtype": "fp16"}),
        ("run", {"dtype": "fp32"}),
        ("run", {"to": "megatron-lm"}),
        ("lora", {}),
        ("lora", {"to": "megatron-lm"}),
        ("lora", {"to": "peft", "like": tmp_path / "hub"}),
    ]
    for number, (run, options) in enumerate(asked):
        assert convert(tmp_path / run, tmp_path / f"out{number}", **options)["difference"] <= 1e-5, options


def test_base_that_is_gone_is_named(tmp_path: Path) -> None:
    convert(save("llama3", tmp_path / "hf"), tmp_path / "base", compare=False)
    run_distributed(train_adapters, 1, tmp_path / "base", tmp_path / "run", {}, {})
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(
        UserError, match="holds adapters alone, of run.load .*base: .* no such run or checkpoint"
    ):
        convert(tmp_path / "run", tmp_path / "out")
    with pytest.raises(UserError, match="holds no adapters"):
        convert(tmp_path / "moved", tmp_path / "out", to="peft")


def test_peft_of_another_model_is_refused(tmp_path: Path) -> None:
    hub = save("llama3", tmp_path / "hf")
    convert(hub, tmp_path / "base", compare=False)
    run_distributed(train_adapters, 1, tmp_path / "base", tmp_path / "run", {}, {})
    tensors = load_file(hub / "model.safetensors")
    tensors["model.embed_tokens.weight"] *= 2
    save_file(tensors, hub / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="logits differ"):
        convert(tmp_path / "run", tmp_path / "out", to="peft", like=hub)
    assert not (tmp_path / "out").exists()


def test_adapters_need_a_model_to_adapt() -> None:
    with pytest.raises(
        UserError, match="lora.rank 4 adapts a trained model: name its checkpoint in run.load"
    ):
        parse_config({"lora": {"rank": 4}})
    with pytest.raises(UserError, match="lora.targets"):
        parse_config({"lora": {"rank": 4, "targets": ["linear_qvk"]}, "run": {"load": "x"}})


def test_average_of_checkpoints(tmp_path: Path) -> None:
    convert(save("mixtral", tmp_path / "one"), tmp_path / "a", compare=False)
    other = save("mixtral", tmp_path / "two")
    first = load_file(tmp_path / "one" / "model.safetensors")
    second = {key: part + 0.25 * torch.randn(part.shape) for key, part in first.items()}
    save_file(second, other / "model.safetensors", metadata={"format": "pt"})
    convert(other, tmp_path / "b", compare=False)
    merge_checkpoints([tmp_path / "a", tmp_path / "b"], tmp_path / "mean", [3, 1])
    convert(tmp_path / "mean", tmp_path / "back", family="mixtral")
    found = load_file(tmp_path / "back" / "model.safetensors")
    for key, part in first.items():
        torch.testing.assert_close(found[key], 0.75 * part + 0.25 * second[key], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("weights", "said"), [([1.0], "1 weights for 2"), ([0.0, 0.0], "sum to 0"), ([1.0, -1.0], "sum to 0")]
)
def test_wrong_weights_of_an_average(weights: list[float], said: str, tmp_path: Path) -> None:
    convert(save("llama3", tmp_path / "hf"), tmp_path / "a", compare=False)
    with pytest.raises(UserError, match=said):
        merge_checkpoints([tmp_path / "a", tmp_path / "a"], tmp_path / "out", weights)


def test_different_models_have_no_average(tmp_path: Path) -> None:
    convert(save("llama3", tmp_path / "one"), tmp_path / "a", compare=False)
    convert(save("qwen3", tmp_path / "two"), tmp_path / "b", compare=False)
    with pytest.raises(UserError, match=r"they have no average"):
        merge_checkpoints([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
