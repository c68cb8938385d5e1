"""Runs in which something goes wrong on one rank, at a moment of one's choice: in a step, in a save, in a validation."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from megalm.checkpoint import list_checkpoints
from megalm.config import Config
from tests.train.runs import ZERO1, run_config, train

STEPS, SAVE_EVERY, VALIDATE_EVERY = 10, 2, 4
SETTINGS = (
    ZERO1,
    f"train.steps={STEPS}",
    f"checkpoint.interval={SAVE_EVERY}",
    f"train.eval_interval={VALIDATE_EVERY}",
    "train.eval_batches=2",
    "data.prefetch=0",  # so that a batch is read in its step
    "model.preset=gpt2-tiny",
    "model.hidden_dropout=0.1",
)
MOMENTS = ("step", "save", "validation")
BAD_STEP, BAD_SAVE = 8, 6
"""In the reading of this step, and in this checkpoint's writing; the validation is the one of step 8, too."""
Act = Callable[[Config], None]


def settings(directory: Path, data: Path, *overrides: str) -> Config:
    return run_config(directory, data, *SETTINGS, *overrides)


def train_until(config: Config, rank: int, moment: str, act: Act, then: tuple[int, Act] | None = None) -> Any:
    """Train; at the moment this rank does `act`, once, and at the reading of a later step's batch `then`."""
    from megalm.checkpoint import parts
    from megalm.train import run

    is_mine = int(os.environ["RANK"]) == rank
    done: list[str] = []

    def once(name: str, work: Act) -> None:
        if is_mine and name not in done:
            done.append(name)
            work(config)

    open_stream, open_validation = run.open_stream, run.open_validation
    really_write = parts.FileSystemWriterAsync.write_preloaded_data

    def open_training(*arguments: Any) -> Any:
        stream = open_stream(*arguments)
        read = stream.batch

        def batch(positions: np.ndarray) -> Any:
            step = int(positions.min()) // config.batch.global_batch_size + 1
            if moment == "step" and step == BAD_STEP:
                once(moment, act)
            if then and step == then[0]:
                once("then", then[1])
            return read(positions)

        stream.batch = batch
        return stream

    def open_held_out(*arguments: Any) -> Any:
        stream = open_validation(*arguments)
        read = stream.batch

        def batch(positions: np.ndarray) -> Any:
            if moment == "validation" and (Path(config.run.dir) / "checkpoints" / "step_00000006").exists():
                once(moment, act)
            return read(positions)

        stream.batch = batch
        return stream

    def write(transforms: Any, number: int, bucket: Any, *rest: Any, **named: Any) -> Any:
        if moment == "save" and f"{BAD_SAVE:08d}" in str(bucket[0]):
            once(moment, act)
        return really_write(transforms, number, bucket, *rest, **named)

    with (
        mock.patch.object(run, "open_stream", open_training),
        mock.patch.object(run, "open_validation", open_held_out),
        mock.patch.object(parts.FileSystemWriterAsync, "write_preloaded_data", staticmethod(write)),
    ):
        return train(config)


def kill(_: Config) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop(_: Config) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def ask_to_end(_: Config) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def newest_tensors(config: Config) -> Path:
    checkpoints = list_checkpoints(config.run.dir)
    return checkpoints[max(checkpoints)] / "tensors" / "__1_0.distcp"


def truncate_and_kill(config: Config) -> None:
    """The newest checkpoint loses its last byte, and the machine goes down."""
    file = newest_tensors(config)
    os.truncate(file, file.stat().st_size - 1)
    kill(config)


def flip_and_kill(config: Config) -> None:
    """The same with a byte in the middle turned over."""
    with open(newest_tensors(config), "r+b") as file:
        file.seek(-200, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    kill(config)
