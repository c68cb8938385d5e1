"""Compiles DeepSpeed's C++ operators, one process at a time, and past what processes that were killed have left."""

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path

import psutil

from megalm.quiet import quiet_output

logger = logging.getLogger(__name__)

_WITHIN = "pin_memory"
"""An operator that others compile with themselves."""


def compile_operator(builder: str) -> str | None:
    """Compile the operator of a class of `deepspeed.ops.op_builder`, or take it from the cache; say what stops it."""
    from deepspeed.ops import op_builder

    chosen = getattr(op_builder, builder)()
    try:
        with _alone(chosen.name), quiet_output():
            chosen.load(verbose=False)
    except Exception as error:  # a missing compiler, header or tool shows in any way it likes
        return " ".join(str(error).split())[:200] or type(error).__name__
    return None


@contextlib.contextmanager
def _alone(operator: str) -> Iterator[None]:
    """One of our processes at a time, of all that share the folder of extensions.

    Torch's own lock is a file that stays when its process is killed, and that everybody waits for without end: one that is
    there now is of no process of ours, and goes unless another process of this machine has it open.
    """
    from torch.utils.cpp_extension import _get_build_directory  # slow to import

    folders = [Path(_get_build_directory(name, verbose=False)) for name in (operator, _WITHIN)]
    with open(folders[0].parent / "megalm.lock", "w") as ours:
        try:
            fcntl.flock(ours, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process to compile DeepSpeed's operators")
            fcntl.flock(ours, fcntl.LOCK_EX)
        for lock in (folder / "lock" for folder in folders):
            if lock.exists() and not _is_open(lock):
                logger.warning("%s: left by a process that is gone; removed", lock)
                lock.unlink(missing_ok=True)
        yield


def _is_open(path: Path) -> bool:
    """Whether a process of this machine that we may look at has the file open."""
    wanted = str(path.resolve())
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(file.path == wanted for file in process.open_files()):
                return True
    return False
