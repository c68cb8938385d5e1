"""Runs that train a part of the model stop and go on under other layouts, and start from other runs with their optimizer."""

from pathlib import Path

import pytest

from megalm.checkpoint import find_checkpoint
from megalm.checkpoint.directory import read_state
from megalm.errors import UserError
from megalm.testing import RankError
from tests.checkpoint.stored import stored_tensors
from tests.train.runs import DEEPSPEED, PP2, ZERO1, events, run_config, step_lines, train_in_world

PART = (
    "train.train_last_layers=1",
    "optimizer.layer_lr_decay=0.5",
    "optimizer.groups=[{name: norms, match: ['*norm*'], lr_scale: 2}]",
)


def test_a_run_goes_on_under_other_layouts_and_engines(tmp_path: Path, data: Path) -> None:
    """On the pipeline the first stage, whose process writes the counts, has nothing to train."""
    train_in_world(1, run_config(tmp_path / "whole", data, *PART))
    three = "train.exit_after_steps=3"
    train_in_world(2, run_config(tmp_path / "parts", data, *PART, PP2, three))
    assert read_state(find_checkpoint(tmp_path / "parts"))["counters"]["updates"] == 3
    train_in_world(2, run_config(tmp_path / "parts", data, *PART, DEEPSPEED, "parallel.zero_stage=3", three))
    train_in_world(2, run_config(tmp_path / "parts", data, *PART, ZERO1))
    whole, parts = (step_lines(tmp_path / name) for name in ("whole", "parts"))
    assert [line["loss"] for line in parts] == pytest.approx([line["loss"] for line in whole], rel=1e-5)
    tensors = stored_tensors(find_checkpoint(tmp_path / "parts"))
    moments = {name for name in tensors if name.startswith("optimizer.")}
    assert moments and not any("embedding" in name for name in moments)
    with pytest.raises((UserError, RankError), match="train.train_last_layers 1, this one has 2"):
        train_in_world(1, run_config(tmp_path / "parts", data, "train.train_last_layers=2"))


def test_a_run_may_start_with_another_ones_optimizer(tmp_path: Path, data: Path) -> None:
    """With the schedule, data and optimizer where the other run stopped the first step is that run's next one."""
    steady = ("optimizer.schedule=constant", "optimizer.warmup_steps=0", "train.steps=8")
    train_in_world(1, run_config(tmp_path / "base", data, *steady, "train.exit_after_steps=3"))
    options = (*steady, f"run.load={tmp_path / 'base'}")
    train_in_world(2, run_config(tmp_path / "with", data, *options, "run.load_optimizer=true", PP2))
    train_in_world(1, run_config(tmp_path / "without", data, *options))
    assert events(tmp_path / "with")[0] == f"weights and optimizer taken from {tmp_path / 'base'}"
    state = read_state(find_checkpoint(tmp_path / "with"))
    assert state["counters"] == {"updates": 11, "steps_begun": 8}
    moments, without = (step_lines(tmp_path / name)[1]["loss"] for name in ("with", "without"))
    assert moments != pytest.approx(without, rel=1e-4)
    first = [step_lines(tmp_path / name)[0]["loss"] for name in ("with", "without")]
    assert first[0] == pytest.approx(first[1], rel=1e-6)
