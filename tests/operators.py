"""Compiles DeepSpeed's C++ operators while other tests run; `python -m tests.operators DESCRIPTOR` is the process that does.

Compiling takes minutes the first time. Tests that need the operators ask for the fixture `operators`, come last, and wait.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

BUILDERS = ("CPUAdamBuilder", "AsyncIOBuilder")
NICE = 5  # the tests that run meanwhile go first


def lock_of(run: str) -> Path:
    """The file that is locked for as long as the operators of test run `run` are being compiled."""
    return Path(tempfile.gettempdir()) / f"megalm-operators-{os.getuid()}-{run}"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold the lock; gives its descriptor."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def start(run: str) -> Callable[[], None]:
    """Start to compile, in a process that holds the lock; returns what ends it."""
    with locked(lock_of(run)) as descriptor:  # the process inherits the lock
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

    def end() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # the compilers too
        process.wait()
        lock_of(run).unlink(missing_ok=True)

    return end


def main() -> None:
    os.nice(NICE)
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
