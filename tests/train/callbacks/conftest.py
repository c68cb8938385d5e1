"""A run of one process, and steps of it, for the tests of callbacks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from megalm.config.schema import BatchConfig, Config, LoggingConfig, ModelConfig, ParallelConfig, TrainConfig
from megalm.engine.base import Metrics
from megalm.parallel.layout import Layout, create_layout
from megalm.train.callbacks.base import Callback, Run, StepRecord

MakeRun = Callable[..., Run]


@pytest.fixture(scope="module")
def layout() -> Layout:
    return create_layout(ParallelConfig())


@pytest.fixture
def make_run(layout: Layout, tmp_path: Path) -> MakeRun:
    """`make_run(step=0, rank=0, interval=1, steps=20, **logging)`: a run in one directory, whatever the call."""

    def make(step: int = 0, rank: int = 0, interval: int = 1, steps: int = 20, **logging: bool) -> Run:
        config = Config(
            model=ModelConfig(vocab_size=100, num_layers=2, hidden_size=32),
            batch=BatchConfig(seq_length=16, global_batch_size=4),
            train=TrainConfig(steps=steps),
            logging=LoggingConfig(interval=interval, **logging),
        )
        return Run(config, replace(layout, rank=rank), tmp_path / "run", step)

    return make


@pytest.fixture
def record() -> Callable[..., StepRecord]:
    """`record(step, loss)`: a finished step of 64 tokens."""

    def make(step: int, loss: float = 2.0, skipped: bool = False, seconds: float = 0.5) -> StepRecord:
        return StepRecord(step, Metrics(loss, 1.5, 60.0, skipped), lr=step * 1e-3, tokens=64, seconds=seconds)

    return make


@pytest.fixture
def play(record: Callable[..., StepRecord]) -> Callable[..., None]:
    """`play(callbacks, run, until)`: go from `run.step` to step `until`, whose loss is 10 / step, as the loop does."""

    def play(callbacks: list[Callback], run: Run, until: int) -> None:
        while run.step < until:
            run.step += 1
            step = record(run.step, 10 / run.step)
            for callback in callbacks:
                callback.on_step(run, step)

    return play
