"""The progress display on a terminal and in a log file."""

import contextlib
import fcntl
import os
import re
import struct
import sys
import termios

import pytest

from megalm.train.callbacks import progress
from megalm.train.callbacks.base import Validation
from megalm.train.callbacks.progress import Progress, describe

VALUES = {"tokens_per_second": 12345.0, "mfu": 0.412, "memory_gb": 3.2}


def started(run):
    callback = Progress()
    callback.on_start(run)
    return callback


@contextlib.contextmanager
def terminal(monkeypatch):
    """A real terminal as stderr in the block; yields a function that returns what was drawn so far."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    with os.fdopen(theirs, "w") as stream, os.fdopen(ours, "rb", buffering=0) as screen:
        os.set_blocking(screen.fileno(), False)

        def drawn() -> str:
            stream.flush()
            parts = []
            while part := screen.read(65536):
                parts.append(part)
            return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(parts).decode()).replace("\r", "\n")

        with contextlib.redirect_stderr(stream):
            yield drawn


def test_line_names_loss_speed_mfu_and_memory(record):
    step = record(1, 3.214)
    step.values |= VALUES
    assert describe(step) == "loss 3.2140  12.3k tok/s  MFU 41.2%  3.20 GB"


@pytest.mark.parametrize(
    ("rate", "text"),
    [(7.25, "7.25"), (999.0, "999"), (1531.0, "1.53k"), (999600.0, "1M"), (2.5e6, "2.5M")],
)
def test_speed_has_a_prefix(record, rate, text):
    step = record(1)
    step.values |= VALUES | {"tokens_per_second": rate}
    assert f"  {text} tok/s" in describe(step)


def test_without_a_terminal_only_some_steps_become_lines(make_run, play, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", float("inf"))
    run = make_run(steps=20)
    callback = started(run)
    play([callback], run, until=20)
    callback.on_end(run)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("step 1/20  loss 10.0000")
    assert last.startswith("step 20/20  loss 0.5000")
    assert last.endswith("0:00:00 left")


def test_without_a_terminal_lines_come_again_after_a_while(make_run, play, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    run = make_run(steps=5)
    play([started(run)], run, until=5)
    assert len(capsys.readouterr().err.splitlines()) == 5


def test_events_and_validations_are_always_printed(make_run, capsys):
    run = make_run(step=7)
    run.facts |= {"device": "cpu, 2 threads a rank", "device_tflops": 0.126, "mfu_against": "measured matmul"}
    callback = started(run)
    callback.on_event(run, "checkpoint [7] saved")
    callback.on_validation(run, Validation({"loss": 2.0, "perplexity": 7.389}))
    assert capsys.readouterr().err.splitlines() == [
        "MFU is the share of 0.126 TFLOP/s a device (cpu, 2 threads a rank), measured matmul",
        "checkpoint [7] saved",
        "step 7: validation loss 2.0000, perplexity 7.3890",
    ]


def test_process_that_exits_early_counts_to_its_own_last_step(make_run, play, capsys):
    run = make_run(step=4, steps=20)
    run.config.train.exit_after_steps = 3
    play([started(run)], run, until=7)
    assert "step 7/7  " in capsys.readouterr().err


def test_bar_on_a_terminal_shows_steps_and_messages_above(make_run, play, record, monkeypatch):
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0.0)
    run = make_run(steps=4)
    step = record(4, 3.214)
    step.values |= VALUES
    with terminal(monkeypatch) as drawn:
        callback = started(run)
        play([callback], run, until=3)
        callback.on_event(run, "checkpoint [last] saved")
        callback.on_step(run, step)
        callback.on_end(run)
        screen = drawn()
    assert re.search(r"step 2/4 .*loss 5.0000", screen)
    assert re.search(r"^\s*checkpoint \[last\] saved\s*$", screen, re.MULTILINE)
    assert re.search(r"step 4/4 .*loss 3.2140  12.3k tok/s  MFU 41.2%  3.20 GB  0:00:00 left", screen)


def test_bar_lets_warnings_through_and_leaves_stderr_as_it_was(make_run, play, monkeypatch):
    run = make_run()
    with terminal(monkeypatch) as drawn:
        before = sys.stderr
        callback = started(run)
        play([callback], run, until=1)
        print("a warning", file=sys.stderr)
        callback.on_end(run)
        assert sys.stderr is before
        assert re.search(r"^\s*a warning\s*$", drawn(), re.MULTILINE)
