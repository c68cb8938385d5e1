"""The figures of a run as its metrics file tells them: series of numbers by name, and what happened."""

from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from megalm.report.json_lines import number, read_objects

VALID = "valid_"
"""What the names of validations' figures begin with."""
_NO_FIGURES = ("step", "skipped", "weight", "event")
_LAST_STEP = 2**53


class Series(NamedTuple):
    """Numbers of steps in ascending order; NaN where a number was not finite."""

    steps: NDArray[np.float64]
    values: NDArray[np.float64]

    def last(self) -> tuple[int, float] | None:
        """Step and value of the newest finite number, None where there is none."""
        places = np.flatnonzero(np.isfinite(self.values))
        return (int(self.steps[places[-1]]), float(self.values[places[-1]])) if len(places) else None

    def first(self) -> float | None:
        """The oldest finite number."""
        places = np.flatnonzero(np.isfinite(self.values))
        return float(self.values[places[0]]) if len(places) else None


class Event(NamedTuple):
    """What a run told after a step."""

    step: int
    text: str


@dataclass
class Figures:
    """Series of training and of validations by name (without `valid_`), events, what each start said of the machine, the
    number of steps that were skipped, the last step, and the number of lines that could not be read.
    """

    training: dict[str, Series] = field(default_factory=dict)
    validation: dict[str, Series] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    starts: list[dict[str, Any]] = field(default_factory=list)
    skipped: int = 0
    last_step: int = 0
    broken: int = 0

    def median(self, name: str) -> float | None:
        """Of the finite numbers of training."""
        values = self.training[name].values if name in self.training else np.empty(0)
        values = values[np.isfinite(values)]
        return float(np.median(values)) if len(values) else None


def start_of(line: dict[str, Any]) -> str:
    """Engine, layout and number of processes of a start."""
    size = line.get("world_size", "?")
    return f"{line.get('engine', '?')}, {line.get('layout', '?')}, {size} process{'es' if size != 1 else ''}"


_Columns: TypeAlias = dict[str, tuple["array[float]", "array[float]"]]


def read_figures(path: Path) -> Figures:
    """The figures in the metrics file at `path`; none where there is no file. A step that came again counts as the last time."""
    found = Figures()
    training: _Columns = defaultdict(lambda: (array("d"), array("d")))
    validation: _Columns = defaultdict(lambda: (array("d"), array("d")))
    skipped: set[int] = set()
    for line in read_objects(path):
        step = line.get("step") if line else None
        if line is None or type(step) is not int or not 0 <= step < _LAST_STEP:
            found.broken += 1
            continue
        found.last_step = max(found.last_step, step)
        if "event" in line:
            is_start = line["event"] == "start"
            found.starts += [line] if is_start else []
            told = f"started as {start_of(line)}" if is_start else str(line["event"])
            found.events.append(Event(step, told))
            continue
        if "skipped" in line:
            (skipped.add if line["skipped"] is True else skipped.discard)(step)
        for name, value in line.items():
            if name in _NO_FIGURES or (given := number(value)) is None:
                continue
            steps, values = validation[name.removeprefix(VALID)] if name.startswith(VALID) else training[name]
            steps.append(step)
            values.append(given)
    found.skipped = len(skipped)
    found.training = {name: _series(*columns) for name, columns in training.items()}
    found.validation = {name: _series(*columns) for name, columns in validation.items()}
    return found


def _series(steps: "array[float]", values: "array[float]") -> Series:
    steps_N, values_N = np.array(steps), np.array(values)
    # unique keeps the first of several, and the last one counts
    unique_N, places_N = np.unique(steps_N[::-1], return_index=True)
    values_N = values_N[::-1][places_N]
    return Series(unique_N, np.where(np.isfinite(values_N), values_N, np.nan))
