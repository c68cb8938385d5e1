"""Writes RUN_DIR/metrics.jsonl: one JSON object a line for steps, validations and events."""

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
    counts those of the steps up to this one. Numbers that are not finite are null.
    """

    def __init__(self) -> None:
        self._file: IO[str] | None = None
        self._last_step = 0
        self._tokens = 0

    def on_start(self, run: Run) -> None:
        if run.layout.rank != 0:
            return
        run.directory.mkdir(parents=True, exist_ok=True)
        # a run from the beginning validates before its first step again
        begins = run.step == 0
        self._open(
            run, run.step, lambda line: line["step"] <= run.step and not (begins and "valid_loss" in line)
        )
        layout = {
            "engine": run.config.engine,
            "layout": run.layout.describe(),
            "world_size": run.layout.world_size,
        }
        self._write({"step": run.step, "event": "start"} | layout | run.facts)

    def on_step(self, run: Run, record: StepRecord) -> None:
        if self._file is None:
            return
        if record.step <= self._last_step:
            self._file.close()
            self._open(run, record.step - 1, lambda line: line["step"] < record.step or "event" in line)
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
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, run: Run, step: int, keep: Callable[[Line], bool]) -> None:
        """Open the file for what follows `step`, without the lines that `keep` refuses."""
        path = run.directory / FILE_NAME
        last = keep_lines(path, keep) or {"step": 0, "tokens": 0}
        batch = run.config.batch
        self._tokens = last["tokens"] + (step - last["step"]) * batch.global_batch_size * batch.seq_length
        self._last_step = step
        self._file = path.open("a", encoding="utf-8")

    def _write(self, line: Line) -> None:
        if self._file is not None:
            numbers = {key: value for key, value in line.items() if isinstance(value, float)}
            nulls = {key: None for key, value in numbers.items() if not math.isfinite(value)}
            self._file.write(json.dumps(line | nulls, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()


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
