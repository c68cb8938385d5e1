"""Shows how a run goes on stderr: a bar with loss, speed, memory and time left, or plain lines where it is no terminal."""

import sys
import textwrap
import time
from collections import deque
from datetime import timedelta
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

from megalm.train.callbacks.base import Callback, Run, StepRecord, Validation

LINE_SECONDS = 5.0  # between plain lines, so that logs stay readable
REFRESH_SECONDS = 0.1  # between drawings of the bar
SHOWN_CHARACTERS = 240  # of a prompt or an answer
ETA_STEPS = 100  # the time left follows the pace of so many steps


class Progress(Callback):
    """On rank 0: each step on the bar, or a line at times; validations and events above it."""

    def __init__(self) -> None:
        self._display: _Display | None = None

    def on_start(self, run: Run) -> None:
        if run.layout.rank != 0:
            return
        train = run.config.train
        self._last_step = min(train.steps, run.step + (train.exit_after_steps or train.steps))
        self._display = _Bar(run.step, self._last_step) if sys.stderr.isatty() else _Lines()
        self._times = deque([time.monotonic()], maxlen=ETA_STEPS + 1)
        if "mfu_against" in run.facts:
            rate = f"{run.facts['device_tflops']:.3g} TFLOP/s a device ({run.facts['device']})"
            self._display.message(f"MFU is the share of {rate}, {run.facts['mfu_against']}")

    def on_step(self, run: Run, record: StepRecord) -> None:
        if self._display is None:
            return
        self._times.append(time.monotonic())
        # wall time, not the steps' own: validations and saves belong to the time left
        pace = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        left = timedelta(seconds=round(pace * (self._last_step - record.step)))
        status = f"{describe(record)}  {left} left"
        self._display.step(record.step, self._last_step, status)

    def on_validation(self, run: Run, validation: Validation) -> None:
        figures = ", ".join(f"{name} {value:.4f}" for name, value in validation.values.items())
        self._message(f"step {run.step}: validation {figures}")
        for answer in validation.answers[: run.config.samples.show]:
            self._message(f"  prompt: {_one_line(answer.prompt)}\n  answer: {_one_line(answer.text)}")

    def on_event(self, run: Run, message: str) -> None:
        self._message(message)

    def on_end(self, run: Run) -> None:
        if self._display is not None:
            self._display.close()
            self._display = None

    def _message(self, text: str) -> None:
        if self._display is not None:
            self._display.message(text)


def describe(record: StepRecord) -> str:
    """One line on a step: `loss 3.2140  12.3k tok/s  MFU 41.2%  3.20 GB`."""
    values = record.values
    parts = [f"loss {record.metrics.loss:.4f}"]
    if "tokens_per_second" in values:
        parts += [f"{_with_prefix(values['tokens_per_second'])} tok/s", f"MFU {values['mfu']:.1%}"]
        parts += [f"{values['memory_gb']:.2f} GB"]
    return "  ".join(parts)


def _one_line(text: str) -> str:
    """The text on one line, without what would not print, and not much of it."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    return textwrap.shorten(shown, SHOWN_CHARACTERS, placeholder=" ...")


def _with_prefix(number: float) -> str:
    for scale, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * scale:  # what rounds to 1000 of the smaller prefix
            return f"{number / scale:.3g}{prefix}"
    return f"{number:.3g}"


class _Display(Protocol):
    """Where a run is shown."""

    def step(self, step: int, last_step: int, status: str) -> None: ...

    def message(self, text: str) -> None: ...

    def close(self) -> None: ...


class _Bar:
    """A bar at the bottom of a terminal; what is printed to stderr meanwhile goes above it."""

    def __init__(self, first_step: int, last_step: int) -> None:
        self._progress = RichProgress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[status]}", markup=False),
            console=Console(stderr=True, highlight=False),
            auto_refresh=False,  # no thread of its own: a process that forks or hangs is better off without
            redirect_stdout=False,  # stdout is for results
            expand=True,
        )
        self._task = self._progress.add_task("", total=last_step, completed=first_step, status="")
        self._drawn = float("-inf")
        self._progress.start()

    def step(self, step: int, last_step: int, status: str) -> None:
        self._progress.update(self._task, completed=step, status=status)
        if time.monotonic() - self._drawn >= REFRESH_SECONDS:
            self._progress.refresh()
            self._drawn = time.monotonic()

    def message(self, text: str) -> None:
        self._progress.console.print(text, markup=False)

    def close(self) -> None:
        self._progress.refresh()
        self._progress.stop()


class _Lines:
    """Plain lines for a log file: the first step, the last, and one every few seconds."""

    def __init__(self) -> None:
        self._printed = float("-inf")

    def step(self, step: int, last_step: int, status: str) -> None:
        if step >= last_step or time.monotonic() - self._printed >= LINE_SECONDS:
            self.message(f"step {step}/{last_step}  {status}")
            self._printed = time.monotonic()

    def message(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass
