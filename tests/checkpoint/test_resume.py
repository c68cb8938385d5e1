"""A run that stops and resumes is the run that did not stop, bit for bit under one layout."""

import itertools
import json
from pathlib import Path

import pytest

from megalm.checkpoint import list_checkpoints
from megalm.train.callbacks.metrics import read_metrics
from tests.checkpoint.stored import assert_equal_tensors, stored_tensors
from tests.train.runs import ALL_LAYOUTS, run_config, step_lines, train_in_world

LAST = Path("checkpoints") / "step_00000008"
LOSS_SCALE = (
    "precision.initial_loss_scale=8388608",
    "precision.hysteresis=1",
    "precision.loss_scale_window=3",
)
GPT2_WITH_DROPOUT = ("model.preset=gpt2-tiny", "model.hidden_dropout=0.1", "model.attention_dropout=0.1")


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        ("one process", "fp32"),
        ("one process", "bf16"),
        ("one process", "fp16"),
        ("one process", "fp64"),
        ("TP2", "fp64"),
        ("TP2", "bf16"),
        ("PP2", "fp32"),
        ("PP2", "bf16"),
        ("DP2+ZeRO-1", "fp32"),
        ("DP2+ZeRO-1", "bf16"),
        ("DP2+ZeRO-1", "fp16"),
        ("TP2xPP2", "fp32"),
        ("DeepSpeed, DP2", "bf16"),
        ("DeepSpeed, ZeRO-1", "fp32"),
        ("DeepSpeed, ZeRO-1", "bf16"),
        ("DeepSpeed, ZeRO-2", "fp32"),
        ("DeepSpeed, ZeRO-2", "bf16"),
        ("DeepSpeed, ZeRO-3", "fp32"),
        ("DeepSpeed, ZeRO-3", "bf16"),
    ],
)
def test_resumed_run_continues_bit_for_bit(tmp_path: Path, data: Path, layout: str, dtype: str) -> None:
    """Losses, norms, weights, moments and counters, with dropout; in fp16 the loss scale falls and grows meanwhile."""
    world_size, overrides = ALL_LAYOUTS[layout]
    settings = (*GPT2_WITH_DROPOUT, *LOSS_SCALE, f"precision.dtype={dtype}", *overrides)
    train_in_world(world_size, run_config(tmp_path / "whole", data, *settings))
    for _ in range(2):
        train_in_world(
            world_size, run_config(tmp_path / "parts", data, *settings, "train.exit_after_steps=4")
        )
    assert list(list_checkpoints(tmp_path / "parts")) == [4, 8]
    assert [line["step"] for line in step_lines(tmp_path / "whole")] == list(range(1, 9))
    assert step_lines(tmp_path / "parts") == step_lines(tmp_path / "whole")
    found, expected = (stored_tensors(tmp_path / part / LAST) for part in ("parts", "whole"))
    assert_equal_tensors(found, expected)
    masters = {name for name in expected if name.startswith("optimizer.master.")}
    assert bool(masters) == (dtype in ("bf16", "fp16"))
    states = [json.loads((tmp_path / part / LAST / "state.json").read_text()) for part in ("parts", "whole")]
    assert states[0]["counters"] == states[1]["counters"]
    if dtype == "fp16":
        scales = [
            line["loss_scale"] for line in read_metrics(tmp_path / "whole" / "metrics.jsonl") if "lr" in line
        ]
        rises = [after > before for before, after in itertools.pairwise(scales)]
        assert any(rises[3:]) and states[0]["skipped_steps"] >= 1


def test_the_dropout_of_these_runs_acts(tmp_path: Path, data: Path) -> None:
    losses = []
    for settings in (GPT2_WITH_DROPOUT, GPT2_WITH_DROPOUT[:1]):
        config = run_config(tmp_path / str(len(losses)), data, *settings, "train.exit_after_steps=1")
        losses.append(train_in_world(1, config)["loss"])
    assert losses[0] != losses[1]
