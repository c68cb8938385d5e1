"""An engine of another world in this world's checkpoints: it writes and reads its own part of them when it is asked to."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megalm import atomic
from megalm.checkpoint.directory import TENSORS
from megalm.checkpoint.failure import Failure, SaveFailed, failure_of, on_first_rank
from megalm.checkpoint.parts import plan_part, write_part
from megalm.checkpoint.read import load_training_state
from megalm.config import Config
from megalm.engine.base import Engine
from megalm.parallel.channel import Channel


class Apart:
    """The engine that the other world of `channel` serves with `handlers`. All methods are collective over both worlds."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.config: Config = channel.call("config")

    @property
    def counters(self) -> dict[str, float]:
        """See Engine."""
        return self.channel.call("counters")

    def save(self, folder: Path) -> dict[str, str]:
        """Have its tensors written into `folder`, on storage that both worlds share; the SHA-256 of each file by its name there.

        SaveFailed where a rank there could not write, on all ranks here.
        """
        digests, failure = self.channel.call("save", folder)
        if failure:
            raise SaveFailed(failure)
        return digests

    def load(self, folder: Path) -> None:
        """Have it go on from the checkpoint in `folder`, whose checksums are known to hold."""
        self.channel.call("load", folder)


def handlers(engine: Engine) -> dict[str, Callable[..., Any]]:
    """What the other world answers `Apart` with."""
    return {
        "config": lambda: engine.config,
        "counters": lambda: engine.counters,
        "save": partial(_save, engine),
        "load": partial(_load, engine),
    }


def _save(engine: Engine, folder: Path) -> tuple[dict[str, str], Failure | None]:
    """The digests of what was written, and what went wrong on one of the ranks; this world serves on in any case."""
    part = plan_part(engine, folder, TENSORS)
    digests: dict[str, str] = {}
    failure = failure_of(part.errors[0]) if part.errors else None
    try:
        write_part(part, digests)
    except Exception as error:
        failure = failure or failure_of(error)
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, (digests, failure))
    if found := next((failed for _, failed in outcomes if failed), None):
        return {}, found
    part.complete()

    def sync() -> None:
        if part.errors:
            raise part.errors[0]
        atomic.sync_directory(folder / TENSORS)
        atomic.sync_directory(folder)

    found = on_first_rank(engine.layout, sync)
    return {name: digest for written, _ in outcomes for name, digest in written.items()}, found


def _load(engine: Engine, folder: Path) -> None:
    load_training_state(engine, folder, verified=True)
