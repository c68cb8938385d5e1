"""Compiling DeepSpeed's operators does not wait for processes that are gone."""

import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from megalm.engine import operators

HOLDER = """
import sys, time
from megalm.engine.operators import _alone
with _alone("an_operator"):
    print("mine", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch compiles the operator."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "an_operator").mkdir()
    return tmp_path / "an_operator"


def test_a_lock_that_a_killed_process_left_is_taken_away(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lock = folder / "lock"
    lock.touch()
    with operators._alone("an_operator"):
        assert not lock.exists()
    assert str(lock) in caplog.text


def test_a_lock_that_somebody_has_open_stays(folder: Path) -> None:
    lock = folder / "lock"
    with open(lock, "w"), operators._alone("an_operator"):
        assert lock.exists()


def test_our_own_processes_wait_for_each_other_and_not_for_a_killed_one(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"mine\n"
        threading.Timer(0.5, holder.kill).start()
        with caplog.at_level(logging.INFO), operators._alone("an_operator"):
            assert holder.wait(60) == -signal.SIGKILL
    assert "waiting for another process" in caplog.text
