"""Compiles DeepSpeed's C++ operators while other tests run; `python -m tests.operators` is the process that does.

Compiling takes ten minutes of processor time the first time. Tests that need the operators ask for the fixture `operators`, come last, and wait.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

BUILDERS = ("CPUAdamBuilder", "AsyncIOBuilder")
JOBS = "2"  # files at once; each takes up to 1.5 GB
RUN = "MEGALM_TEST_RUN"  # environment variable: which run of pytest this is


def lock() -> Path:
    """The file that is locked for as long as the operators are being compiled; all processes of a run of pytest name the same."""
    return Path(tempfile.gettempdir()) / f"megalm-operators-{os.environ[RUN]}"


@contextlib.contextmanager
def locked(wait: bool = True) -> Iterator[int]:
    """Hold the lock; gives the file's descriptor. BlockingIOError if somebody has it and `wait` is not set."""
    descriptor = os.open(lock(), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)


def start() -> None:
    """Start to compile, in a process that holds the lock until it ends."""
    with locked() as descriptor:  # the process inherits the lock
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.operators"],
            cwd=Path(__file__).parents[1],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},  # as the workers of worlds
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.write(descriptor, str(process.pid).encode())


def end() -> None:
    """Stop the compiling, if it is still going on."""
    if not lock().exists():
        return
    try:
        with locked(wait=False):
            pass
    except BlockingIOError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(lock().read_text()), signal.SIGTERM)  # the compilers too
        with locked():
            pass
    lock().unlink()


def main() -> None:
    os.environ.setdefault("MAX_JOBS", JOBS)
    # torch takes its lock of the build folder away on the way out, so leave by an exception
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    import torch

    from megalm.engine.deepspeed_setup import import_deepspeed

    import_deepspeed(torch.device("cpu"))
    from deepspeed.ops import op_builder

    for name in BUILDERS:
        with contextlib.suppress(Exception):  # what stops it the tests find out, and say so
            getattr(op_builder, name)().load(verbose=False)


if __name__ == "__main__":
    main()
