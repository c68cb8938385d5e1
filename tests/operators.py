"""Compiles DeepSpeed's C++ operators while other tests run; `python -m tests.operators` is the process that does.

Compiling takes ten minutes of processor time the first time. Tests that need the operators ask for the fixture `operators`, come last, and wait.
"""

import contextlib
import faulthandler
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

BUILDERS = ("CPUAdamBuilder", "AsyncIOBuilder")
JOBS = "2"  # files at once; each takes up to 1.5 GB
MOST_SECONDS = 2000
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


def log() -> Path:
    """What that process has to say."""
    return lock().with_suffix(".log")


def start() -> None:
    """Start to compile, in a process that holds the lock until it ends."""
    with locked() as descriptor, open(log(), "wb") as errors:  # the process inherits the lock
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.operators"],
            cwd=Path(__file__).parents[1],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},  # as the workers of worlds
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
        os.write(descriptor, str(process.pid).encode())


def wait() -> None:
    """Return once that process has ended. TimeoutError, with where it stands, if that takes too long."""
    process, end = int(lock().read_text()), time.monotonic() + MOST_SECONDS
    while True:
        with contextlib.suppress(BlockingIOError), locked(wait=False):
            return
        if not Path(f"/proc/{process}").exists() and sys.platform == "linux":
            return
        if time.monotonic() > end:
            os.kill(process, signal.SIGUSR1)
            time.sleep(1)
            raise TimeoutError(f"still compiling after {MOST_SECONDS} s:\n{log().read_text()[-5000:]}")
        time.sleep(0.2)


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
    log().unlink()


def main() -> None:
    faulthandler.register(
        signal.SIGUSR1, os.fdopen(os.dup(2), "w")
    )  # what libraries write is kept from 2 itself
    os.environ.setdefault("MAX_JOBS", JOBS)
    # torch takes its lock of the build folder away on the way out, so leave by an exception
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    import torch

    from megalm.engine.deepspeed_setup import import_deepspeed
    from megalm.engine.operators import compile_operator

    import_deepspeed(torch.device("cpu"))
    for name in BUILDERS:
        compile_operator(name)  # what stops it the tests find out, and say so


if __name__ == "__main__":
    main()
