"""One run at a time in a run directory."""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist

from megalm.errors import UserError

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def run_lock(directory: Path) -> Iterator[None]:
    """Hold `directory` for this run until the block ends or the process dies; UserError if another run holds it.

    Collective: rank 0 takes the lock, all ranks learn whether it did. Where the file system knows no locks the run goes on
    with a warning.
    """
    with contextlib.ExitStack() as stack:
        outcome: list[str | None] = [None]
        if dist.get_rank() == 0:
            outcome[0] = _take(directory, stack)
        dist.broadcast_object_list(outcome, src=0)
        if outcome[0]:
            raise UserError(outcome[0])
        yield


def _take(directory: Path, stack: contextlib.ExitStack) -> str | None:
    """Lock for as long as `stack` is open; return what is in the way, or None."""
    lock = directory / ".lock"
    try:
        if not directory.exists():
            directory.mkdir(parents=True)
            stack.callback(_remove_if_empty, directory)
        file = stack.enter_context(open(lock, "w"))  # noqa: SIM115
    except OSError as error:
        return f"{error.filename}: {error.strerror}; choose another run.dir"
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return f"{directory} is in use by another run: wait for it, or choose another run.dir"
    except OSError as error:
        logger.warning("%s: cannot lock it against a second run (%s)", directory, error)
    if not lock.exists() or not os.path.samestat(lock.stat(), os.fstat(file.fileno())):
        return f"{directory} was given up by another run at this moment: repeat the command"
    stack.callback(_remove, lock)
    return None


def _remove(lock: Path) -> None:
    """Where storage has failed meanwhile, the file stays; it is the lock on it that counts."""
    with contextlib.suppress(OSError):
        lock.unlink()


def _remove_if_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()
