"""What the last validation of reward models and classifiers found in full: calibration, and which classes were confused."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from megalm.html.lines import Line, Picture, line_chart
from megalm.report.json_lines import mapping, number
from megalm.report.run import RunRecord

MOST_CLASSES = 30
_SHADES = 4


class Bin(NamedTuple):
    """Pairs of a run of whose preferred answer the model was about so sure, and how often that was the chosen one."""

    run: str
    pairs: int
    sure: float
    right: float


class Calibration(NamedTuple):
    """The picture of all reward models, and its numbers."""

    picture: Picture
    bins: list[Bin]


class Cell(NamedTuple):
    """Texts of a class that were given a label, and how dark that is shown."""

    texts: int
    style: str


class ClassRow(NamedTuple):
    """A true class: its texts by predicted label, and its figures."""

    label: str
    cells: list[Cell]
    figures: list[float | None]


class Confusion(NamedTuple):
    """Of one classifier. left_out: classes that are too many to show."""

    run: str
    step: Any
    labels: list[str]
    rows: list[ClassRow]
    left_out: int


def calibration_of(runs: Sequence[RunRecord]) -> Calibration | None:
    """How often the answer with the larger reward was the chosen one, by how sure the model was; None without such runs."""
    bins: list[Bin] = []
    lines = [Line("as often as it was sure", "ideal", "raw", np.array([0.5, 1.0]), np.array([0.5, 1.0]))]
    for place, run in enumerate(runs):
        own = [
            Bin(run.name, int(count), sure, right) for count, sure, right in _triples(run.reward.get("bins"))
        ]
        bins += own
        sure, right = np.array([bin.sure for bin in own]), np.array([bin.right for bin in own])
        lines += [Line(run.name, f"run-{place}", "dots", sure, right)] if own else []
    title = "How often the answer with the larger reward was the chosen one, by how sure the model was"
    x_title = "probability that the model gives to it"
    drawn = line_chart(lines, title, "share of pairs", x_title, whole=False)
    return Calibration(drawn, bins) if bins and drawn else None


def _triples(value: Any) -> list[list[float]]:
    """The bins that hold pairs, of what reward.json says."""
    rows = (
        [list(map(number, row)) for row in value if isinstance(row, list)] if isinstance(value, list) else []
    )
    finite = [[x for x in row if x is not None and np.isfinite(x)] for row in rows]
    return [row for row in finite if len(row) == 3 and row[0] > 0]


def confusions_of(runs: Sequence[RunRecord]) -> list[Confusion]:
    """The confusion matrices of the runs that have one."""
    found = [(run, _matrix(run.classification.get("confusion"))) for run in runs]
    return [_confusion(run, matrix) for run, matrix in found if matrix]


def _matrix(value: Any) -> list[list[int]] | None:
    """A square of counts, None for all else."""
    if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
        return None
    counts = all(type(count) is int and count >= 0 for row in value for count in row)
    return value if counts and all(len(row) == len(value) for row in value) else None


def _confusion(run: RunRecord, matrix: list[list[int]]) -> Confusion:
    given = run.classification.get("labels")
    labels = [str(label) for label in given] if isinstance(given, list) else []
    labels = labels if len(labels) == len(matrix) else [str(place) for place in range(len(matrix))]
    classes = mapping(run.classification.get("classes"))
    rows = []
    for label, counts in list(zip(labels, matrix, strict=True))[:MOST_CLASSES]:
        told = mapping(classes.get(label))
        figures = [number(told.get(name)) for name in ("precision", "recall", "f1")]
        most = sum(counts) or 1
        cells = [Cell(count, _shade(count / most)) for count in counts[:MOST_CLASSES]]
        rows.append(ClassRow(label, cells, figures))
    step = run.classification.get("step")
    return Confusion(run.name, step, labels[:MOST_CLASSES], rows, max(0, len(labels) - MOST_CLASSES))


def _shade(share: float) -> str:
    """The darker, the larger the share of the class."""
    level = min(int(share * _SHADES) + 1, _SHADES) if share > 0 else 0
    return f"heat-less-{level}" if level else ""
