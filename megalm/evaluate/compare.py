"""Sets two evaluations side by side: what each score gained or lost, and whether other questions would have said so too.

Where both asked the same questions, the difference is taken on the same selections of them (a paired bootstrap: Koehn 2004,
Statistical Significance Tests for Machine Translation Evaluation), else from the two intervals as if they knew nothing of each other.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megalm.errors import UserError
from megalm.evaluate.bootstrap import interval
from megalm.evaluate.files import FILE_NAME, read_draws
from megalm.evaluate.ideals import is_gain

ROUNDING = 1e-6
"""Relative; another layout or another batch size may do as much."""


@dataclass(frozen=True)
class Change:
    """Of one metric. low, high: 95% interval of the difference, None where there is none. paired: found question by question."""

    task: str
    metric: str
    before: float
    after: float
    low: float | None
    high: float | None
    paired: bool

    @property
    def difference(self) -> float:
        """after - before."""
        return self.after - self.before

    @property
    def is_significant(self) -> bool:
        """Whether the interval leaves 0 out; what rounding brings does not count."""
        if self.low is None or self.high is None or abs(self.difference) <= ROUNDING * abs(self.before):
            return False
        return not self.low <= 0.0 <= self.high

    @property
    def is_better(self) -> bool | None:
        """Whether it is a gain; None where it is not significant, or is neither gain nor loss."""
        return is_gain(self.metric, self.before, self.after) if self.is_significant else None

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"difference": self.difference, "better": self.is_better}


def read_results(folder: Path) -> dict[str, Any]:
    """What an evaluation in `folder` found; UserError with one line where there is none."""
    path = folder / FILE_NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: no results of an evaluation ({error}); name the directory that megalm eval wrote to"
        ) from None
    if not isinstance(found, dict) or not isinstance(found.get("tasks"), dict):
        raise UserError(f"{path}: no results of an evaluation; name the directory that megalm eval wrote to")
    return found


def changes(before: Path, after: Path) -> list[Change]:
    """Of every metric that the evaluations in both directories have; UserError where they have none in common."""
    old, new = read_results(before), read_results(after)
    found = [
        _change(name, metric, old["tasks"][name], entry, (before, after))
        for name, entry in new["tasks"].items()
        if name in old["tasks"]
        for metric in entry["metrics"]
        if metric in old["tasks"][name]["metrics"]
    ]
    if not found:
        raise UserError(f"{before} and {after} have no task in common")
    return found


def differs_in(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """What two results of a task were not asked alike, None where they were: the same questions, and the same selections of them."""
    for key, what in (("questions_hash", "questions"), ("seed", "seed")):
        if old.get(key) is None or old[key] != new.get(key):
            return what
    return None


def _change(
    task: str, metric: str, old: dict[str, Any], new: dict[str, Any], folders: tuple[Path, Path]
) -> Change:
    first, second = old["metrics"][metric], new["metrics"][metric]
    low = high = None
    paired = not differs_in(old, new)
    draws = [read_draws(folder, task).get(metric) for folder in folders] if paired else [None]
    kept = [each for each in draws if each is not None]
    if len(kept) == 2 and len(kept[0]) == len(kept[1]):
        low, high = interval(kept[1] - kept[0])
    elif first["low"] is not None and second["low"] is not None:
        half = math.hypot(*(score["high"] - score["low"] for score in (first, second))) / 2
        middle = second["value"] - first["value"]
        low, high, paired = middle - half, middle + half, False
    return Change(task, metric, first["value"], second["value"], low, high, paired)
