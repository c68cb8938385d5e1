"""An engine of another world in this world's checkpoints: it writes and reads its own part of them when it is asked to."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megalm import atomic
from megalm.checkpoint.directory import TENSORS
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
        """Have its tensors written into `folder`, on storage that both worlds share; the SHA-256 of each file by its name there."""
        return self.channel.call("save", folder)

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


def _save(engine: Engine, folder: Path) -> dict[str, str]:
    part = plan_part(engine, folder, TENSORS)
    digests: dict[str, str] = {}
    error = None
    try:
        write_part(part, digests)
    except Exception as failure:  # told to all ranks, which wait for each other
        error = repr(failure)
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, (digests, error))
    for rank, (_, failed) in enumerate(outcomes):
        if failed:
            raise OSError(f"rank {rank} of its world could not write {folder}: {failed}")
    part.complete()
    if dist.get_rank() == 0:
        atomic.sync_directory(folder / TENSORS)
        atomic.sync_directory(folder)
    return {name: digest for written, _ in outcomes for name, digest in written.items()}


def _load(engine: Engine, folder: Path) -> None:
    load_training_state(engine, folder, verified=True)
