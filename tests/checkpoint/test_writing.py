"""Saving happens beside training, and a save that is cut short leaves the last good checkpoint in force (of one that fails: tests/faults)."""

import threading
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from megalm.checkpoint import list_checkpoints
from megalm.checkpoint.directory import verify
from megalm.config import Config
from megalm.testing import run_distributed
from tests.checkpoint.stored import assert_equal_tensors, stored_tensors
from tests.train.runs import (
    LAYOUTS,
    ZERO1,
    events,
    run_config,
    train_in_world,
)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def save_behind_training(config: Config, reference: Path) -> list[Any]:
    """Save one state twice: with the writer thread held up while training goes on, and (to `reference`) at once.

    Returns what was seen: whether the save was pending after each of two steps, and the steps reported as saved.
    """
    from megalm.checkpoint import write
    from megalm.engine.megatron import MegatronEngine
    from megalm.parallel.layout import create_layout
    from megalm.train.data import TrainingData, open_stream
    from megalm.train.pretrain import NextTokenLoss

    engine = MegatronEngine(config, create_layout(config.parallel))
    data = TrainingData(config, engine.layout, open_stream(config, config.data.train, None))
    seen: list[Any] = []

    def take_step() -> None:
        engine.step(data.next(), NextTokenLoss(), 1e-2)

    take_step()
    at_once = write.CheckpointWriter(reference, config, engine)
    at_once.save(1, {})
    at_once.finish()

    go_on, really_write = threading.Event(), write._write

    def write_later(save: Any) -> None:
        go_on.wait()
        really_write(save)

    writer = write.CheckpointWriter(Path(config.run.dir), config, engine, on_saved=seen.append)
    with mock.patch.object(write, "_write", write_later):
        writer.save(1, {})
        for _ in range(2):
            take_step()
            writer.poll()
            seen.append(writer.pending is not None)
        seen.append(list(list_checkpoints(config.run.dir)))
        go_on.set()
        writer.finish()
    writer.save(3, {})
    writer.finish()
    return seen


@pytest.mark.parametrize(
    ("layout", "dtype"), [("one process", "fp32"), ("DP2+ZeRO-1", "bf16"), ("PP2", "fp32")]
)
def test_training_goes_on_while_a_save_is_written(
    tmp_path: Path, data: Path, layout: str, dtype: str
) -> None:
    """What is written is the state at the moment of the save, not what training has made of it since."""
    world_size, overrides = LAYOUTS[layout]
    config = run_config(tmp_path / "run", data, *overrides, f"precision.dtype={dtype}")
    for seen in run_distributed(save_behind_training, world_size, config, tmp_path / "reference"):
        assert seen == [True, True, [], 1, 3]
    saved, later = (stored_tensors(path) for path in list_checkpoints(tmp_path / "run").values())
    assert_equal_tensors(saved, stored_tensors(tmp_path / "reference" / "checkpoints" / "step_00000001"))
    assert all(not saved[name].equal(later[name]) for name in saved if name.endswith("linear_fc1.weight"))


def save_without_the_device(config: Config) -> None:
    """Save with the library's own copy from the device forbidden; what the thread gets must be on the CPU."""
    from megalm.checkpoint import parts, write
    from megalm.engine.megatron import MegatronEngine
    from megalm.parallel.layout import create_layout

    engine = MegatronEngine(config, create_layout(config.parallel))
    with mock.patch.object(parts.FileSystemWriterAsync, "preload_tensors", side_effect=AssertionError):
        writer = write.CheckpointWriter(Path(config.run.dir), config, engine)
        writer.save(1, {})
        assert writer.pending is not None
        for _, _, (other, tensors) in writer.pending.parts[0].request.async_fn_args[1]:
            assert not other and {tensor.device.type for _, tensor in tensors} == {"cpu"}
        writer.finish()


def test_the_writing_thread_leaves_the_device_alone(tmp_path: Path, data: Path) -> None:
    """A thread begins on the first device, whatever the process uses: it would wait for copies of another one."""
    run_distributed(save_without_the_device, 2, run_config(tmp_path, data, ZERO1))
    assert names(tmp_path) == ["step_00000001"]


@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_saves_are_complete_intact_pruned_and_told_of_once(
    tmp_path: Path, data: Path, asynchronous: str
) -> None:
    settings = (f"checkpoint.async_save={asynchronous}", "checkpoint.interval=2", "checkpoint.keep_every=4")
    config = run_config(tmp_path, data, *settings, "checkpoint.keep_last=1", "train.steps=7")
    train_in_world(2, config)
    assert names(tmp_path) == ["step_00000004", "step_00000007"]
    assert [verify(path) for path in list_checkpoints(tmp_path).values()] == [None, None]
    assert events(tmp_path) == [f"checkpoint of step {step} saved" for step in (2, 4, 6, 7)]
    train_in_world(2, config)
    saved = [event for event in events(tmp_path) if event.endswith("saved")]
    assert len(saved) == 4, "a run that is at its end saved again"
