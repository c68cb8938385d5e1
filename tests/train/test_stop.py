"""SIGTERM is kept for the ranks to agree on; a second request, or a lost peer, gives it back its usual effect."""

import os
import signal
import subprocess
import sys
import threading
from unittest import mock

import pytest
import torch

from tests.worlds import in_world

CHILD = """
import os, signal, sys, torch
from megalm.train import stop
stop.REPEAT_SECONDS = float(sys.argv[1])
with stop.StopRequest(torch.device("cpu")):
    os.kill(os.getpid(), signal.SIGTERM)
    print("goes on", flush=True)
    {then}
print("ended well")
"""
LOST_PEER = 'raise RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer")'


def child(then: str, repeat_seconds: str) -> tuple[int, str]:
    """Exit code and output of a process that gets SIGTERM in the block, and then does what `then` says."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", CHILD.format(then=then), repeat_seconds]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("then", "repeat_seconds", "code", "ends_well"),
    [
        ("pass", "5", 0, True),
        ("os.kill(os.getpid(), signal.SIGTERM)", "3600", 0, True),
        ("os.kill(os.getpid(), signal.SIGTERM)", "0", -signal.SIGTERM, False),
        (LOST_PEER, "5", -signal.SIGTERM, False),
        ('raise ValueError("of its own")', "5", 1, False),
    ],
    ids=["one", "the same one again", "a second one", "lost peer", "another error"],
)
def test_process_ends_as_the_signals_ask(then: str, repeat_seconds: str, code: int, ends_well: bool) -> None:
    returned, out = child(then, repeat_seconds)
    assert (returned, out) == (code, "goes on\nended well\n" if ends_well else "goes on\n")


@pytest.mark.parametrize(
    ("then", "code"), [("pass", 0), ("signal.raise_signal(signal.SIGINT)", -signal.SIGINT)]
)
def test_first_ctrl_c_is_a_request_and_the_second_interrupts(then: str, code: int) -> None:
    begin = "os.kill(os.getpid(), signal.SIGTERM)"
    # a test run in the background of a shell starts with SIGINT ignored
    lines = CHILD.replace(begin, "signal.raise_signal(signal.SIGINT)").replace(
        "with stop", "signal.signal(signal.SIGINT, signal.default_int_handler)\nwith stop"
    )
    with mock.patch.dict(globals(), CHILD=lines):
        returned, out = child(then, "5")
    assert (returned, "ended well" in out) == (code, code == 0)


STUCK = """
    import ctypes, threading
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    for _ in range(2):
        library.pthread_mutex_lock(mutex)
"""


def test_a_second_request_ends_an_operation_that_never_returns() -> None:
    """A mutex that is taken twice: no handler of Python's runs any more."""
    assert child(STUCK.strip(), "0") == (-signal.SIGTERM, "goes on\n")


@in_world(2)
def test_all_ranks_learn_that_one_was_asked() -> None:
    from megalm.train.stop import StopRequest

    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(torch.device("cpu")) as request:
        assert not request.agreed()
        if os.environ["RANK"] == "1":
            signal.raise_signal(signal.SIGTERM)
        assert request.agreed()
    assert signal.getsignal(signal.SIGTERM) == before


def test_other_threads_leave_signals_alone() -> None:
    from megalm.train.stop import StopRequest

    installed = []
    with mock.patch.object(signal, "signal", lambda *arguments: installed.append(arguments)):

        def enter() -> None:
            with StopRequest(torch.device("cpu")):
                pass

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert not installed
