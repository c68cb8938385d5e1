"""Validations choose the best checkpoint, which is kept and found, and end a run that gets no better."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from megalm.checkpoint import find_checkpoint, list_checkpoints
from megalm.checkpoint.directory import read_state
from megalm.config import Config
from megalm.errors import UserError
from megalm.testing import RankError, run_distributed
from megalm.train.callbacks.base import Callback, Run, Validation
from megalm.train.callbacks.metrics import MetricsFile
from megalm.train.selection import Watch
from tests.train.runs import events, run_config

SCORES = (0.5, 0.7, 0.6, 0.6, 0.9, 0.1, 0.95, 0.2)
BEST = ("checkpoint.keep_best.metric=score", "checkpoint.keep_best.mode=max", "checkpoint.keep_last=1")
STOP = ("train.early_stopping.metric=score", "train.early_stopping.mode=max")
EACH_STEP = ("train.eval_interval=1", "train.eval_batches=1")


class Scores(Callback):
    """A validation's score after each step, in the other order on ranks but the first."""

    def on_validation(self, run: Run, validation: Validation) -> None:
        validation.values["score"] = SCORES[run.step - 1] * (-1 if run.layout.rank else 1)


def train(config: Config) -> dict[str, Any]:
    from megalm.train import run

    with mock.patch.object(run, "standard_callbacks", lambda _: [Scores(), MetricsFile()]):
        return run.main(config)


def start(directory: Path, data: Path, *overrides: str, world_size: int = 1) -> dict[str, Any]:
    config = run_config(directory, data, *EACH_STEP, *overrides)
    return run_distributed(train, world_size, config)[0]


def link(directory: Path) -> str:
    return (directory / "checkpoints" / "best").readlink().name


def test_the_best_checkpoint_is_saved_when_it_is_reached_and_survives(tmp_path: Path, data: Path) -> None:
    """Two ranks that see different scores go by the first one's."""
    result = start(tmp_path, data, *BEST, "train.steps=6", world_size=2)
    assert (result["best_step"], result["best_score"], result["step"]) == (5, 0.9, 6)
    assert list(list_checkpoints(tmp_path)) == [5, 6]
    best = find_checkpoint(tmp_path, "best")
    assert best == find_checkpoint(tmp_path, 5)
    assert best.samefile(find_checkpoint(tmp_path / "checkpoints" / "best")) and link(tmp_path) == best.name
    told = [event for event in events(tmp_path) if event.startswith("best")]
    assert told == [f"best validation so far: score {SCORES[step - 1]} at step {step}" for step in (1, 2, 5)]
    assert [event for event in events(tmp_path) if event.endswith("saved")] == [
        f"checkpoint of step {step} saved" for step in (1, 2, 5, 6)
    ]


def test_what_was_seen_survives_a_stop_and_a_return_to_an_older_checkpoint(
    tmp_path: Path, data: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = (*BEST, *STOP, "train.early_stopping.patience=9", "checkpoint.keep_last=2")
    start(whole, data, *options)
    start(parts, data, *options, "train.steps=8", "train.exit_after_steps=3")
    start(parts, data, *options, "train.exit_after_steps=3")
    assert list(list_checkpoints(parts)) == [5, 6] and link(parts) == "step_00000005"
    # the newest one is damaged: the run goes back to the one before, as it was then
    (find_checkpoint(parts, 6) / "state.json").write_text("{}")
    result = start(parts, data, *options)
    assert read_state(find_checkpoint(parts)) == read_state(find_checkpoint(whole))
    assert result["best_step"] == 7 and link(parts) == link(whole) == "step_00000007"
    assert list(list_checkpoints(parts)) == list(list_checkpoints(whole)) == [7, 8]


def test_a_best_checkpoint_that_is_gone_is_forgotten(tmp_path: Path, data: Path) -> None:
    options = (*BEST, "train.steps=4")
    assert start(tmp_path, data, *options, "train.exit_after_steps=3")["best_step"] == 2
    shutil.rmtree(find_checkpoint(tmp_path, "best"))
    assert start(tmp_path, data, *options)["best_step"] == 4 and link(tmp_path) == "step_00000004"


def test_a_run_that_gets_no_better_ends_and_stays_ended_until_it_may_go_on(
    tmp_path: Path, data: Path
) -> None:
    options = (*STOP, "train.early_stopping.patience=2")
    assert start(tmp_path, data, *options)["step"] == 4
    told = "valid_score has not been better than 0.7 of step 2 in 2 validations (train.early_stopping)"
    assert events(tmp_path)[-1] == f"stopped early after step 4: {told}"
    assert start(tmp_path, data, *options)["step"] == 4
    assert start(tmp_path, data, *STOP, "train.early_stopping.patience=3")["step"] == 8


def test_a_gain_below_min_delta_is_none(tmp_path: Path, data: Path) -> None:
    options = (*STOP, "train.early_stopping.patience=2", "train.early_stopping.min_delta=0.3")
    assert start(tmp_path, data, *options)["step"] == 3


def test_an_unknown_figure_is_told_with_those_there_are(tmp_path: Path, data: Path) -> None:
    options = ("checkpoint.keep_best.metric=skore", "checkpoint.keep_best.mode=max")
    with pytest.raises(
        (UserError, RankError), match=r"'skore'.*mean 'score'\? \(known: loss, perplexity, score\)"
    ):
        start(tmp_path, data, *options)


@pytest.mark.parametrize(("mode", "better", "worse"), [("min", 0.9, 1.1), ("max", 1.1, 0.9)])
def test_nan_is_never_better_and_the_first_number_always(mode: Any, better: float, worse: float) -> None:
    watch = Watch("here", "figure", mode)
    values = [float("nan"), 1.0, worse, float("nan"), 1.0, better]
    assert [watch.see(step, {"figure": value}) for step, value in enumerate(values)] == [
        False,
        True,
        False,
        False,
        False,
        True,
    ]
    other = Watch("here", "figure", mode)
    other.load(json.loads(json.dumps(watch.state())))
    assert (other.value, other.step, other.since) == (better, 5, 0)
    Watch("here", "another", mode).load(watch.state())
    other.load(None)
    assert other.see(9, {"figure": worse})
