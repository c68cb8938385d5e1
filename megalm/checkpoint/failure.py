"""A save that could not be written: what is said of it, and whether a later one may do better."""

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from megalm.atomic import storage_failure
from megalm.checkpoint.directory import list_checkpoints, stored_bytes
from megalm.parallel.layout import Layout


@dataclass(frozen=True)
class Failure:
    """Why a save failed. may_pass: storage failed, which may work again."""

    text: str
    may_pass: bool


class SaveFailed(OSError):
    """Another world could not write its part of a save."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


def failure_of(error: BaseException) -> Failure:
    """What there is to say of an error of one rank."""
    if isinstance(error, SaveFailed):
        return error.failure
    storage = storage_failure(error)
    return Failure(storage or repr(error), storage is not None)


def on_first_rank(layout: Layout, work: Callable[[], object]) -> Failure | None:
    """Do `work` on rank 0 alone; its failure, if it had one, on every rank. Collective."""
    outcome: list[Failure | None] = [None]
    if layout.rank == 0:
        try:
            work()
        except Exception as error:
            outcome = [failure_of(error)]
    dist.broadcast_object_list(outcome, device=layout.device)
    return outcome[0]


def check_room(run_directory: Path) -> None:
    """Raise OSError where there is less room than the newest checkpoint takes: its successor lies beside it at first."""
    found = list_checkpoints(run_directory)
    if not found:
        return
    needed, free = stored_bytes(found[max(found)]), shutil.disk_usage(run_directory).free
    if free < needed:
        said = f"{os.strerror(errno.ENOSPC)} ({free / 1e9:.3g} GB are free, the last checkpoint took {needed / 1e9:.3g} GB)"
        raise OSError(errno.ENOSPC, said, str(run_directory))
