"""Hands code and tests to a sandboxed process of their own, several at a time, and takes the verdicts."""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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


def run_tests(task: Task, limits: Limits = Limits()) -> list[Verdict]:
    """Run each test in a process of its own, after the code.

    A process has no network, makes no others and, where the kernel has Landlock, sees no files but Python's own and writes to
    an empty folder alone (see `check_sandbox`). Of what is patched, built-in names and modules that the
    tests import are put back before a test; a test of code that looks for the sandbox's own variables can still be fooled.
    """
    request = {**task._asdict(), **vars(limits), "tests": list(task.tests)}
    with tempfile.TemporaryDirectory(prefix="megalm-sandbox-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [sys.executable, "-S", "-s", "-B", str(SUPERVISOR)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={"PYTHONHASHSEED": "0", "LANG": "C.UTF-8"},  # sets come in the same order each time
            start_new_session=True,
        )
        try:
            told, errors = process.communicate(json.dumps(request).encode(), timeout=limits.seconds + GRACE)
        except subprocess.TimeoutExpired:
            return [Verdict(False, "out of time")] * len(task.tests)
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode != 0:
        raise RuntimeError(f"the sandbox failed: {errors.decode(errors='replace')[-1000:]}")
    return [Verdict(*verdict) for verdict in json.loads(told)]


def run_tests_of(tasks: Sequence[Task], limits: Limits = Limits(), workers: int = 2) -> list[list[Verdict]]:
    """`run_tests` of each, `workers` of them at a time."""
    with ThreadPoolExecutor(workers, thread_name_prefix="sandbox") as pool:
        return list(pool.map(lambda task: run_tests(task, limits), tasks))


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
