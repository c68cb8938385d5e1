"""A rank that gets a part of the processor is named, and told when it is well again; even ranks are not."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist

from megalm.config import Config
from megalm.config.watch import WatchConfig
from megalm.testing import run_distributed
from megalm.train.callbacks.metrics import read_metrics
from megalm.watch import waits
from megalm.watch.stragglers import Stragglers
from tests.train.runs import GLOBAL_BATCH, ZERO1, events, run_config, train, train_in_world, write_tokens
from tests.worlds import in_world

INTERVAL, STEPS, SLOW_FROM, SLOW_UNTIL = 5, 90, 10, 30
# A duty cycle by real stops; its last word lets the process run.
BRAKE = """
trap 'kill -CONT $1; exit' TERM
while kill -STOP $1; do sleep 0.09; kill -CONT $1; sleep 0.01; done
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("data"))


def train_with_a_brake(config: Config) -> dict[str, Any]:
    """Train; for some steps rank 1 is stopped for most of the time."""
    from megalm.train import run

    open_stream = run.open_stream
    brakes: list[subprocess.Popen[bytes]] = []

    def open_braked(*arguments: Any) -> Any:
        stream = open_stream(*arguments)
        read = stream.batch

        def batch(positions: np.ndarray) -> Any:
            step = int(positions.min()) // GLOBAL_BATCH + 1
            if step == SLOW_FROM and os.environ["RANK"] == "1":
                brakes.append(subprocess.Popen(["sh", "-c", BRAKE, "sh", str(os.getpid())]))
            if step == SLOW_UNTIL and brakes:
                brakes[0].terminate()
                brakes.pop().wait()
            return read(positions)

        stream.batch = batch
        return stream

    with mock.patch.object(run, "open_stream", open_braked):
        return train(config)


@pytest.mark.skipif(sys.platform != "linux", reason="stops a process as Linux does")
def test_a_rank_that_is_slowed_down_is_named_and_is_told_when_it_is_well_again(
    tmp_path: Path, data: Path
) -> None:
    settings = (ZERO1, f"train.steps={STEPS}", f"watch.interval={INTERVAL}", "data.prefetch=0")
    run_distributed(train_with_a_brake, 2, run_config(tmp_path, data, *settings))
    told = [event for event in events(tmp_path) if event.startswith("rank 1 on")]
    # on a busy machine it may be slow again by chance
    assert len(told) >= 2 and "is slow" in told[0] and "as fast as the others again" in told[1]
    lines = {
        line["step"]: line for line in read_metrics(tmp_path / "metrics.jsonl") if "slowest_rank" in line
    }
    assert list(lines) == list(range(INTERVAL, STEPS + 1, INTERVAL))
    braked = [lines[step] for step in (20, 25)]
    assert all(line["slowest_rank"] == 1 and line["slowest_rank_ratio"] > 1.3 for line in braked)
    assert all(line["slowest_rank_z"] > 3.5 for line in braked)


def test_even_ranks_are_not_named(tmp_path: Path, data: Path) -> None:
    """Ratios as a busy machine makes them by chance are let through: what is looked for is that nobody stays behind."""
    settings = (ZERO1, "train.steps=40", f"watch.interval={INTERVAL}", "watch.slow_ratio=3")
    train_in_world(2, run_config(tmp_path, data, *settings))
    assert not [event for event in events(tmp_path) if "is slow" in event]


@in_world(2)
def test_waits_are_counted_of_sync_and_async_calls_and_messages() -> None:
    waits.install()
    rank = dist.get_rank()

    def late(call: Any) -> float:
        """What rank 0 waits for rank 1, which comes 0.3 s later."""
        dist.barrier()
        before = waits.seconds_waited()
        time.sleep(0.3 * rank)
        call()
        return waits.seconds_waited() - before

    ones = torch.ones(4)

    def message() -> None:
        work = dist.isend(ones, 0) if rank else dist.irecv(ones, 1)
        assert work is not None
        work.wait()

    for call in (
        lambda: dist.all_reduce(ones),
        lambda: dist.all_reduce(ones, async_op=True).wait(),
        lambda: dist.recv(ones, 1) if rank == 0 else dist.send(ones, 0),
        message,
        lambda: dist.all_gather_object([None, None], rank),
        lambda: dist.barrier(),
    ):
        waited = late(call)
        assert (0.2 < waited) if rank == 0 else (waited < 0.2), call


@in_world(2)
def test_a_rank_is_named_after_two_windows_and_told_once_when_it_is_well() -> None:
    from megalm.config.schema import ParallelConfig
    from megalm.parallel.layout import create_layout

    layout = create_layout(ParallelConfig())
    watch = Stragglers(WatchConfig(interval=2), layout)
    told = []
    for step in range(1, 17):
        own = 2.0 if layout.rank == 1 and 2 < step <= 8 else 1.0
        figures, messages = watch.see(step, seconds=own + 5.0, waited=5.0)
        assert bool(figures) == (step % 2 == 0)
        told += [(step, message.partition(" on ")[0], "slow" in message) for message in messages]
    assert told == [(6, "rank 1", True), (12, "rank 1", False)]
