"""Hands code and tests to a sandboxed process of their own, several at a time, and takes the verdicts."""

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from megalm import progress
from megalm.errors import UserError
from megalm.sandbox.confine import can_close_files, can_refuse_system_calls

logger = logging.getLogger(__name__)

SUPERVISOR = Path(__file__).with_name("supervisor.py")
GRACE = 10.0
"""Seconds beyond the limit in which the sandbox must have cleaned up after itself."""


@dataclass(frozen=True)
class Limits:
    """Of one task: seconds for all its tests together, and of each test's process its address space and largest file."""

    seconds: float = 10.0
    memory_bytes: int = 512 << 20
    file_bytes: int = 1 << 20


class Task(NamedTuple):
    """Python code, tests that each pass where they raise nothing, and the function that their `check` is called with."""

    code: str
    tests: Sequence[str]
    entry_point: str | None = None


class Verdict(NamedTuple):
    """Whether a test ran to its end, and if not, why."""

    passed: bool
    reason: str


class _Process:
    """A process that runs tests, a task after another; a new one is begun where it is late."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="megalm-sandbox-", ignore_cleanup_errors=True)
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-s", "-B", str(SUPERVISOR)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.folder.name,
            env={"PYTHONHASHSEED": "0", "LANG": "C.UTF-8"},  # sets come in the same order each time
            start_new_session=True,
        )

    def ask(self, task: Task, limits: Limits) -> list[Verdict] | None:
        """The verdicts; None where they are far too late. RuntimeError where the process failed."""
        assert self.process.stdin and self.process.stdout and self.process.stderr
        request = {**task._asdict(), **vars(limits), "tests": list(task.tests)}
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        told, deadline = b"", time.monotonic() + limits.seconds + GRACE
        while not told.endswith(b"\n"):
            if not _readable(self.process.stdout, deadline):
                return None
            piece = os.read(self.process.stdout.fileno(), 1 << 16)
            if not piece:
                errors = self.process.stderr.read().decode(errors="replace")
                raise RuntimeError(f"the sandbox failed: {errors[-1000:]}")
            told += piece
        return [Verdict(*verdict) for verdict in json.loads(told)]

    def close(self) -> None:
        """End the process with all that it runs, and remove what they left."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        self.folder.cleanup()


def _readable(file: IO[bytes], deadline: float) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(file, selectors.EVENT_READ)
        return bool(selector.select(max(0.0, deadline - time.monotonic())))


def run_tests(task: Task, limits: Limits = Limits()) -> list[Verdict]:
    """Run each test in a process of its own, after the code.

    A process has no network, makes no others and, where the kernel has Landlock, sees no files but Python's own and writes to
    an empty folder alone (see `check_sandbox`). Of what is patched, built-in names and modules that the tests import are put
    back before a test; a test of code that looks for the sandbox's own variables can still be fooled.
    """
    return run_tests_of([task], limits, 1)[0]


def run_tests_of(tasks: Sequence[Task], limits: Limits = Limits(), workers: int = 2) -> list[list[Verdict]]:
    """`run_tests` of each, `workers` of them at a time."""
    numbered = enumerate(tasks)
    lock = threading.Lock()
    found: dict[int, list[Verdict]] = {}

    def work() -> None:
        process = _Process()
        try:
            while True:
                with lock:
                    number, task = next(numbered, (-1, None))
                if task is None:
                    return
                verdicts = process.ask(task, limits)
                if verdicts is None:
                    verdicts = [Verdict(False, "out of time")] * len(task.tests)
                    process.close()
                    process = _Process()
                found[number] = verdicts
                progress.beat()
        finally:
            process.close()

    with ThreadPoolExecutor(max(1, min(workers, len(tasks))), thread_name_prefix="sandbox") as pool:
        for done in [pool.submit(work) for _ in range(min(workers, len(tasks)))]:
            done.result()
    return [found[number] for number in range(len(tasks))]


def check_sandbox() -> None:
    """Raise UserError where this machine cannot contain code; log where it cannot keep code from files."""
    if not can_refuse_system_calls():
        raise UserError(
            "code of responses can be run on Linux with seccomp alone (x86-64 or AArch64), which this system lacks: "
            "train there, or leave out rewards that run code"
        )
    if not can_close_files():
        logger.warning(
            "the sandbox of unit tests cannot keep code from files: the kernel has no Landlock (Linux 5.13); run as a user who "
            "may read and write nothing of worth, or in a container of its own"
        )
