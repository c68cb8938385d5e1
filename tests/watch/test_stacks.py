"""The state and the stack of a process that cannot speak for itself."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megalm.watch.stacks import (
    born,
    calling_line,
    describe_state,
    in_order,
    own_stacks,
    stack_by_signal,
    state_of,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

CHILD = """
import sys, time
from pathlib import Path
from megalm.watch.stacks import told_by_signal

def sleeper():
    print("here", flush=True)
    time.sleep(600)

with told_by_signal(Path(sys.argv[1])):
    sleeper()
"""


@pytest.mark.parametrize("is_stopped", [True, False])
def test_a_process_tells_its_stack_and_stays_as_it_was(tmp_path: Path, is_stopped: bool) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", CHILD, str(tmp_path / "stack")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None and child.stdout.readline() == b"here\n"
            if is_stopped:
                os.kill(child.pid, signal.SIGSTOP)
                assert stops(child.pid)
                assert describe_state(child.pid) == "is stopped (state T)"
            said = stack_by_signal(child.pid, tmp_path / "stack")
            assert said is not None and "in sleeper" in in_order(said)
            if is_stopped:
                assert stops(child.pid)
        finally:
            child.kill()
    assert describe_state(child.pid) == "is gone" and born(child.pid) == ""
    assert stack_by_signal(child.pid, tmp_path / "stack") is None


def stops(process: int) -> bool:
    """Whether it comes to a halt: a signal takes its time."""
    end = time.monotonic() + 60
    while state_of(process) != "T" and time.monotonic() < end:
        time.sleep(0.01)
    return state_of(process) == "T"


def test_own_stacks_and_line_are_of_the_main_thread() -> None:
    assert "test_own_stacks_and_line_are_of_the_main_thread" in in_order(own_stacks())
    assert "test_stacks.py" in calling_line() or "megalm" in calling_line()
    assert born(os.getpid())
