"""Samples whose loss is not finite: in a step (tests/train/test_nonfinite.py has more of it), while a save is written, in a validation."""

import os
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from megalm.config import Config
from megalm.testing import run_distributed
from tests.faults.moments import STEPS, VALIDATE_EVERY, settings
from tests.train.runs import GLOBAL_BATCH, events, step_lines, train, validation_losses

Steps = list[dict[str, Any]]
BAD_STEP = 7
BAD_SAMPLES = ((BAD_STEP - 1) * GLOBAL_BATCH, BAD_STEP * GLOBAL_BATCH)


def train_on_bad_samples(config: Config, moment: str) -> dict[str, Any]:
    """Step 7's samples, or those that are validated, count infinitely much; with `save`, rank 1 writes step 6's tensors meanwhile."""
    from megalm.checkpoint import parts
    from megalm.train import run

    begun = threading.Event()
    open_stream, open_validation = run.open_stream, run.open_validation
    really_write = parts.FileSystemWriterAsync.write_preloaded_data

    def open_training(*arguments: Any) -> Any:
        stream = open_stream(*arguments)
        read = stream.batch

        def batch(positions: np.ndarray) -> Any:
            found = read(positions)
            bad = (positions >= BAD_SAMPLES[0]) & (positions < BAD_SAMPLES[1])
            if moment != "validation":
                found.loss_mask_BS[bad] = np.inf
            if bad.any():
                begun.set()
            return found

        stream.batch = batch
        return stream

    def open_held_out(*arguments: Any) -> Any:
        stream = open_validation(*arguments)
        read = stream.batch

        def batch(positions: np.ndarray) -> Any:
            found = read(positions)
            if moment == "validation":
                found.loss_mask_BS[:] = np.inf
            return found

        stream.batch = batch
        return stream

    def write(transforms: Any, number: int, bucket: Any, *rest: Any, **named: Any) -> Any:
        if moment == "save" and os.environ["RANK"] == "1" and f"{BAD_STEP - 1:08d}" in str(bucket[0]):
            assert begun.wait(60)
        return really_write(transforms, number, bucket, *rest, **named)

    with (
        mock.patch.object(run, "open_stream", open_training),
        mock.patch.object(run, "open_validation", open_held_out),
        mock.patch.object(parts.FileSystemWriterAsync, "write_preloaded_data", staticmethod(write)),
    ):
        return train(config)


def train_without_bad_samples(config: Config) -> dict[str, Any]:
    """They do not exist; those after them move up."""
    from megalm.train import run

    open_stream = run.open_stream

    def open_training(*arguments: Any) -> Any:
        stream = open_stream(*arguments)
        read, (first, end) = stream.batch, BAD_SAMPLES
        stream.batch = lambda positions: read(
            np.where(positions >= first, positions + end - first, positions)
        )
        return stream

    with mock.patch.object(run, "open_stream", open_training):
        return train(config)


@pytest.mark.parametrize("moment", ["step", "save"])
def test_bad_step_sends_the_run_back_and_past_its_samples(tmp_path: Path, data: Path, moment: str) -> None:
    config = settings(tmp_path / "run", data, "train.max_nonfinite_steps=1")
    run_distributed(train_on_bad_samples, 2, config, moment)
    run_distributed(train_without_bad_samples, 2, settings(tmp_path / "clean", data))
    (told,) = [event for event in events(tmp_path / "run") if event.startswith("rolled back")]
    assert (
        told == f"rolled back to step {BAD_STEP - 1}, past samples {BAD_SAMPLES[0]} to {BAD_SAMPLES[1] - 1}"
    )
    assert step_lines(tmp_path / "run") == step_lines(tmp_path / "clean")


def test_bad_validation_leaves_training_alone(tmp_path: Path, data: Path, undisturbed: Steps) -> None:
    run_distributed(train_on_bad_samples, 2, settings(tmp_path, data), "validation")
    assert validation_losses(tmp_path) == {
        step: None for step in (*range(VALIDATE_EVERY, STEPS, VALIDATE_EVERY), STEPS)
    }
    assert step_lines(tmp_path) == undisturbed
