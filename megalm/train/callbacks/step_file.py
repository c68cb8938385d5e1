"""What callbacks have in common that write lines of JSON with the step they belong to."""

import json
from collections.abc import Iterable
from typing import Any

from megalm.train.callbacks.base import Callback, Run, StepRecord
from megalm.train.callbacks.metrics import keep_lines


class StepFile(Callback):
    """A file in the run directory that rank 0 writes. Each step stands in it once, also after a resume or a rollback."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._last_step = 0

    def on_start(self, run: Run) -> None:
        self._forget(run, run.step or -1)  # a run from the beginning may validate before its first step

    def on_step(self, run: Run, record: StepRecord) -> None:
        if record.step <= self._last_step:
            self._forget(run, record.step - 1)
        self._last_step = record.step

    def append(self, run: Run, lines: Iterable[dict[str, Any]]) -> None:
        """Write what belongs to the run's step."""
        if run.layout.rank == 0:
            with open(run.directory / self._name, "a", encoding="utf-8") as file:
                for line in lines:
                    file.write(json.dumps({"step": run.step} | line, ensure_ascii=False) + "\n")

    def _forget(self, run: Run, step: int) -> None:
        """Drop what a run that is gone back on wrote after `step`."""
        self._last_step = step
        if run.layout.rank == 0:
            keep_lines(run.directory / self._name, lambda line: line["step"] <= step)
