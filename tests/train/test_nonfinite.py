"""Steps whose loss is not finite are skipped and counted; too many in a row send the run back, and past their data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from megalm.checkpoint import find_checkpoint, list_checkpoints
from megalm.config import Config
from megalm.dataset import TokenStream
from megalm.testing import RankError, run_distributed
from megalm.train.callbacks.metrics import read_metrics
from tests.checkpoint.stored import assert_equal_tensors, stored_tensors
from tests.train.runs import LAYOUTS, ZERO1, events, run_config, step_lines, train

ChangeBatch = Callable[..., Any]
DROPOUT = ("model.preset=gpt2-tiny", "model.hidden_dropout=0.1")


def train_on(config: Config, change: str, *arguments: Any) -> dict[str, Any]:
    """Train on batches as the function of that name here changes them."""
    from megalm.train import run

    open_stream = run.open_stream

    def open_changed(*stream_arguments: Any) -> TokenStream:
        stream = open_stream(*stream_arguments)
        read = stream.batch
        stream.batch = lambda positions: globals()[change](config, read, positions, *arguments)
        return stream

    with mock.patch.object(run, "open_stream", open_changed):
        return train(config)


def poisoned(_: Config, read: ChangeBatch, positions: np.ndarray, first: int, stop: int, every: int) -> Any:
    """Every so many samples of a range count infinitely much."""
    batch = read(positions)
    bad = (positions >= first) & (positions < stop) & (positions % every == 0)
    batch.loss_mask_BS[bad] = np.inf
    return batch


def without(_: Config, read: ChangeBatch, positions: np.ndarray, first: int, stop: int) -> Any:
    """The samples of a range do not exist; those after it move up."""
    return read(np.where(positions >= first, positions + (stop - first), positions))


def poisoned_and_damaged(
    config: Config, read: ChangeBatch, positions: np.ndarray, first: int, stop: int
) -> Any:
    """At the first bad samples the newest checkpoint breaks, too."""
    if first in positions:
        (find_checkpoint(config.run.dir) / "state.json").write_text("")
    return poisoned(config, read, positions, first, stop, every=1)


def poisoned_and_cut_off(
    config: Config, read: ChangeBatch, positions: np.ndarray, first: int, stop: int
) -> Any:
    """The first time that the run comes past the bad samples, it ends."""
    mark = Path(config.run.dir) / "was here"
    if stop in positions and not mark.exists():
        mark.touch()
        raise InterruptedError("the power went out")
    return poisoned(config, read, positions, first, stop, every=1)


def all_alike(results: list[dict[str, Any]]) -> dict[str, Any]:
    assert all(str(result) == str(results[0]) for result in results)
    return results[0]


def test_bad_step_is_skipped_and_counted_and_changes_nothing(tmp_path: Path, data: Path) -> None:
    """One sample of the third step is bad, so one of two ranks sees it; both leave weights and moments alone."""
    config = run_config(tmp_path, data, ZERO1, "checkpoint.interval=1", "checkpoint.keep_last=9")
    result = all_alike(run_distributed(train_on, 2, config, "poisoned", 17, 18, 1))
    lines = step_lines(tmp_path)
    assert [line["skipped"] for line in lines] == [False] * 2 + [True] + [False] * 5
    assert lines[2]["loss"] is None
    assert all(line["loss"] < 7 for line in lines if not line["skipped"])
    assert (result["step"], result["skipped_steps"], result["rollbacks"]) == (8, 1, 0)
    assert "step 3 skipped: loss or gradient is not finite" in events(tmp_path)
    paths = list_checkpoints(tmp_path)
    assert_equal_tensors(stored_tensors(paths[3]), stored_tensors(paths[2]))
    state = json.loads((paths[8] / "state.json").read_text())
    assert state["counters"] == {"updates": 7, "steps_begun": 8} and state["skipped_steps"] == 1


@pytest.mark.parametrize(
    ("layout", "asynchronous"), [("one process", "false"), ("DP2+ZeRO-1", "true"), ("PP2", "true")]
)
def test_run_goes_back_and_on_past_the_bad_samples_as_if_there_were_none(
    tmp_path: Path, data: Path, layout: str, asynchronous: str
) -> None:
    """Steps 4 and 5 (samples 24 to 39) are bad; a checkpoint is due between them; dropout is on."""
    world_size, overrides = LAYOUTS[layout]
    settings = (
        *DROPOUT,
        *overrides,
        "checkpoint.interval=2",
        "train.max_nonfinite_steps=2",
        f"checkpoint.async_save={asynchronous}",
    )
    config = run_config(tmp_path / "run", data, *settings)
    result = all_alike(run_distributed(train_on, world_size, config, "poisoned", 24, 40, 8))
    config = run_config(tmp_path / "clean", data, *settings)
    run_distributed(train_on, world_size, config, "without", 24, 40)

    assert (result["step"], result["skipped_steps"], result["rollbacks"]) == (8, 2, 1)
    assert "rolled back to step 2, past samples 24 to 39" in events(tmp_path / "run")
    assert step_lines(tmp_path / "run") == step_lines(tmp_path / "clean")
    found, expected = (list_checkpoints(tmp_path / name) for name in ("run", "clean"))
    assert list(found) == list(expected) == [4, 6, 8]
    for step in expected:
        assert_equal_tensors(stored_tensors(found[step]), stored_tensors(expected[step]))
    cursor = json.loads((found[8] / "state.json").read_text())["cursor"]
    assert cursor == {"next_sample": 80, "skipped": [[24, 40]]}


def test_overflow_of_the_loss_scale_is_no_reason_to_go_back(tmp_path: Path, data: Path) -> None:
    """Steps that only the scale made infinite are skipped until it fits, more than a run of bad steps may be."""
    scale = ("precision.dtype=fp16", f"precision.initial_loss_scale={2**24}", "precision.hysteresis=1")
    config = run_config(tmp_path, data, *scale, "checkpoint.interval=1", "train.max_nonfinite_steps=2")
    result = all_alike(run_distributed(train, 2, config))
    lines = step_lines(tmp_path)
    overflows = [line["step"] for line in lines if line["skipped"]]
    assert len(overflows) >= 3 and overflows == list(range(1, len(overflows) + 1))
    assert (result["step"], result["skipped_steps"], result["rollbacks"]) == (8, len(overflows), 0)
    assert all(line["loss"] is not None and line["grad_norm"] is None for line in lines[: len(overflows)])
    assert "step 2 skipped: gradients overflow at loss scale 8.38861e+06" in events(tmp_path)
    scales = [line["loss_scale"] for line in read_metrics(tmp_path / "metrics.jsonl") if "lr" in line]
    assert scales == [2.0 ** (24 - min(step, len(overflows))) for step in range(8)]


def test_skipped_samples_stay_skipped_after_a_resume(tmp_path: Path, data: Path) -> None:
    """Samples 40 to 47 are bad: stopped after the rollback and before it comes to them again."""
    settings = ("checkpoint.interval=2", "train.max_nonfinite_steps=1")
    parts = run_config(tmp_path / "parts", data, *settings, "train.exit_after_steps=5")
    for _ in range(2):
        result = run_distributed(train_on, 1, parts, "poisoned", 40, 48, 1)[0]
    assert (result["step"], result["skipped_steps"], result["rollbacks"]) == (8, 1, 1)
    run_distributed(train_on, 1, run_config(tmp_path / "clean", data, *settings), "without", 40, 48)
    assert step_lines(tmp_path / "parts") == step_lines(tmp_path / "clean")


def test_run_that_goes_back_too_often_ends_with_an_error(tmp_path: Path, data: Path) -> None:
    """From sample 24 on all are bad."""
    settings = ("checkpoint.interval=1", "train.max_nonfinite_steps=2", "train.max_rollbacks=2")
    config = run_config(tmp_path, data, ZERO1, *settings)
    with pytest.raises(RankError, match=r"TrainingDiverged: .* after 2 rollbacks \(train.max_rollbacks\)"):
        run_distributed(train_on, 2, config, "poisoned", 24, 10**9, 8)
    told = [event for event in events(tmp_path) if event.startswith("rolled back")]
    assert told == [f"rolled back to step 3, past samples {samples}" for samples in ("24 to 39", "40 to 55")]
    assert len([event for event in events(tmp_path) if "skipped" in event]) == 6


def test_without_a_checkpoint_the_run_goes_on_past_the_bad_samples(tmp_path: Path, data: Path) -> None:
    config = run_config(tmp_path, data, "train.max_nonfinite_steps=2")
    result = run_distributed(train_on, 1, config, "poisoned", 8, 24, 1)[0]
    assert (result["step"], result["skipped_steps"], result["rollbacks"]) == (8, 2, 1)
    assert "no checkpoint to go back to: going on past the bad data" in events(tmp_path)
    assert [line["skipped"] for line in step_lines(tmp_path)] == [False, True, True] + [False] * 5


OFTEN_SAVED = (
    "checkpoint.interval=2",
    "checkpoint.async_save=false",
    "data.prefetch=0",
    "train.max_nonfinite_steps=2",
)


def test_run_goes_back_past_a_damaged_checkpoint(tmp_path: Path, data: Path) -> None:
    """The checkpoint of step 4 breaks while steps 5 and 6 are bad."""
    config = run_config(tmp_path / "run", data, *OFTEN_SAVED)
    run_distributed(train_on, 1, config, "poisoned_and_damaged", 32, 48)
    run_distributed(train_on, 1, run_config(tmp_path / "clean", data, *OFTEN_SAVED), "without", 32, 48)
    assert "rolled back to step 2, past samples 32 to 47" in events(tmp_path / "run")
    assert step_lines(tmp_path / "run") == step_lines(tmp_path / "clean")


def test_run_that_ends_right_after_going_back_resumes_from_where_it_went(tmp_path: Path, data: Path) -> None:
    """Steps 4 and 5 are bad; the checkpoint of step 4, made between them, must not come back."""
    config = run_config(tmp_path / "run", data, *OFTEN_SAVED)
    with pytest.raises(RankError, match="the power went out"):
        run_distributed(train_on, 1, config, "poisoned_and_cut_off", 24, 40)
    assert "rolled back to step 2, past samples 24 to 39" in events(tmp_path / "run")
    assert list(list_checkpoints(tmp_path / "run")) == [2]
    run_distributed(train_on, 1, config, "poisoned_and_cut_off", 24, 40)
    run_distributed(train_on, 1, run_config(tmp_path / "clean", data, *OFTEN_SAVED), "without", 24, 40)
    assert step_lines(tmp_path / "run") == step_lines(tmp_path / "clean")
