"""Writes RUN_DIR/metrics.jsonl: one JSON object a line for steps, validations and events."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from megalm.atomic import open_atomic
from megalm.run_files import METRICS as FILE_NAME
from megalm.train.callbacks.base import Callback, Run, StepRecord, Validation

Line = dict[str, Any]


class MetricsFile(Callback):
    """On rank 0 a line every `logging.interval` steps, each validation, each event, and a "start" event with `run.facts`.

    Each step stands in the file once: lines that a killed run wrote past the step it is resumed from are dropped at the
    start, and steps that a rollback undoes are dropped when they come again (events stay, to tell of it). `tokens`
    counts those of the steps up to this one. Numbers that are not finite are null. Lines that storage does not take are
    an OSError and are kept for the next time that something is written.
    """

    def __init__(self) -> None:
        self._is_on = False
        self._file: IO[bytes] | None = None
        self._waiting: list[Line] = []
        self._written = 0
        """Bytes of the first of them that the file has already."""
        self._last_step = 0
        self._tokens = 0

    def on_start(self, run: Run) -> None:
        if run.layout.rank != 0:
            return
        self._is_on = True
        # a run from the beginning validates before its first step again
        begins = run.step == 0
        self._begin(
            run, run.step, lambda line: line["step"] <= run.step and not (begins and "valid_loss" in line)
        )
        layout = {
            "engine": run.config.engine,
            "layout": run.layout.describe(),
            "world_size": run.layout.world_size,
        }
        self._write({"step": run.step, "event": "start"} | layout | run.facts)

    def on_step(self, run: Run, record: StepRecord) -> None:
        if not self._is_on:
            return
        if record.step <= self._last_step:
            self._begin(run, record.step - 1, lambda line: line["step"] < record.step or "event" in line)
        self._last_step = record.step
        self._tokens += record.tokens
        if record.step % run.config.logging.interval == 0:
            self._write(_step_line(record, self._tokens))

    def on_validation(self, run: Run, validation: Validation) -> None:
        self._write(
            {"step": run.step} | {f"valid_{name}": value for name, value in validation.values.items()}
        )

    def on_event(self, run: Run, message: str) -> None:
        self._write({"step": run.step, "event": message})

    def on_end(self, run: Run) -> None:
        try:
            if self._waiting:
                self._flush()
        finally:
            self._close()
            self._is_on = False

    def _begin(self, run: Run, step: int, keep: Callable[[Line], bool]) -> None:
        """Go on with what follows `step`, without the lines that `keep` refuses."""
        self._close()
        self._path, self._keep = run.directory / FILE_NAME, keep
        self._waiting = [line for line in self._waiting if keep(line)]
        self._last_step = step
        batch = run.config.batch
        tokens_of_step = batch.global_batch_size * batch.seq_length
        self._tokens = step * tokens_of_step
        with contextlib.suppress(OSError):  # met again, and told, when the next line is written
            last = self._open()
            if last is not None:
                self._tokens = last["tokens"] + (step - last["step"]) * tokens_of_step

    def _open(self) -> Line | None:
        """Open the file; return its last step's line."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        last = keep_lines(self._path, self._keep)
        self._file = self._path.open("ab", buffering=0)
        return last

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._written = (
            None,
            0,
        )  # what there is of a line without its end, is dropped with the next opening

    def _write(self, line: Line) -> None:
        if self._is_on:
            self._waiting.append(line)
            self._flush()

    def _flush(self) -> None:
        """Write the waiting lines, as far as they go."""
        if self._file is None:
            self._open()
        assert self._file is not None
        while self._waiting:
            text = _text(self._waiting[0])
            while self._written < len(text):
                self._written += self._file.write(text[self._written :]) or 0
            self._waiting.pop(0)
            self._written = 0


def _text(line: Line) -> bytes:
    numbers = {key: value for key, value in line.items() if isinstance(value, float)}
    nulls = {key: None for key, value in numbers.items() if not math.isfinite(value)}
    return (json.dumps(line | nulls, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_metrics(path: Path) -> Iterator[Line]:
    """The lines of a metrics file, oldest first; nothing where there is no file. A line that a kill cut short is left out."""
    for _, line in _parse(path):
        yield line


def _step_line(record: StepRecord, tokens: int) -> Line:
    metrics = record.metrics
    line = {"step": record.step, "loss": metrics.loss, "grad_norm": metrics.grad_norm, "lr": record.lr}
    line |= {"tokens": tokens, "weight": metrics.weight, "skipped": metrics.skipped}
    return line | metrics.more | record.values


def keep_lines(path: Path, keep: Callable[[Line], bool]) -> Line | None:
    """Drop the lines of a JSON-lines file that `keep` refuses, in one step; returns the last step's line that stays."""
    last, kept_bytes = None, 0
    for text, line in _parse(path):
        if keep(line):
            kept_bytes += len(text)
            last = line if "tokens" in line else last
    if path.exists() and kept_bytes < path.stat().st_size:
        with open_atomic(path) as file:
            file.writelines(text for text, line in _parse(path) if keep(line))
    return last


def _parse(path: Path) -> Iterator[tuple[bytes, Line]]:
    if not path.exists():
        return
    with open(path, "rb") as file:
        for text in file:
            if text.endswith(b"\n"):
                yield text, json.loads(text)
