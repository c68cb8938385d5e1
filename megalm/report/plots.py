"""Draws the charts of a report into files of their own, for slides and papers: PNG and SVG."""

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megalm import atomic
from megalm.errors import UserError
from megalm.report.curves import Curve, families
from megalm.report.evaluations import Scores, scores_of
from megalm.report.run import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMS = ("png", "svg")
COLOURS = ("#2563c9", "#d4572a", "#17877d", "#8250c4", "#9a7200", "#c2378c", "#57606c", "#3f8f29")
"""Of runs, as on the page."""
GRID = "#e2e8f0"


def write_plots(runs: Sequence[RunRecord], folder: Path, evaluations: Sequence[Path] = ()) -> list[Path]:
    """Write a chart for each known figure of the runs, and one of their scores, into `folder`; returns the files.

    They are called as the figures in metrics.jsonl; where runs learned different kinds of things, with the kind before it.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a directory for the plots")
    written = []
    for name, figure in _figures(runs, evaluations):
        for form in FORMS:
            path = folder / f"{name}.{form}"
            atomic.write_bytes(path, _drawn(figure, form))
            written.append(path)
    return written


def _figures(runs: Sequence[RunRecord], evaluations: Sequence[Path]) -> Iterator[tuple[str, "Figure"]]:
    found = families(runs)
    for family in found:
        kind = f"{family.title}_" if len(found) > 1 else ""
        for curves in family.groups:
            for chart in curves.charts:
                yield re.sub(r"[^\w@.-]+", "_", f"{kind}{chart.name}"), _curve(chart, len(family.runs) > 1)
    if scores := scores_of(runs, evaluations):
        yield "evaluation", _scores(scores)


def _curve(chart: Curve, several: bool) -> "Figure":
    figure, axes = _axes((6.4, 3.8))
    for line in chart.lines:
        colour = COLOURS[int(line.style.removeprefix("run-")) % len(COLOURS)]
        look: dict[str, Any] = {"linewidth": 1.6, "label": _plain(line.name)}
        if line.kind == "raw":
            look = {"linewidth": 0.7, "alpha": 0.35}
        elif line.kind == "dots":
            look |= {"linestyle": "--", "marker": "o", "markersize": 3.5, "linewidth": 1.0}
        axes.plot(line.x, line.y, color=colour, **look)
    axes.set_xlabel("step")
    axes.set_ylabel(chart.unit)
    axes.set_title(_plain(chart.title), loc="left")
    if several or len(chart.lines) > 2:
        axes.legend(frameon=False, fontsize=8)
    return figure


def _scores(scores: Scores) -> "Figure":
    """A point and its interval for each task's main metric that lies between 0 and 1, and each model."""
    rows = [
        (place, row)
        for place, row in enumerate(
            row
            for row in scores.rows
            if row.task and all(cell is None or 0 <= float(cell.score) <= 1 for cell in row.cells)
        )
    ]
    models = len(scores.columns)
    figure, axes = _axes((7.0, 1.2 + 0.16 * len(rows) * (models + 1)))
    for number, column in enumerate(scores.columns):
        found = [(place, row.cells[number]) for place, row in rows]
        kept = [(place, cell) for place, cell in found if cell is not None]
        values = np.array([float(cell.score) for _, cell in kept])
        ends = np.array(
            [
                [float(end) for end in cell.interval.split(" to ")]
                if cell.interval
                else [float(cell.score)] * 2
                for _, cell in kept
            ]
        ).reshape(-1, 2)
        at = np.array([place for place, _ in kept]) + (number - (models - 1) / 2) / (models + 1)
        spans = np.maximum(np.abs(ends - values[:, None]).T, 0.0)
        axes.errorbar(
            values,
            at,
            xerr=spans,
            fmt="o",
            markersize=3.5,
            linewidth=1.2,
            color=COLOURS[number],
            label=_plain(column.name),
        )
    for place, row in rows:
        if row.chance:
            axes.plot(
                [float(row.chance)] * 2,
                [place - 0.45, place + 0.45],
                color="#94a3b8",
                linestyle=":",
                linewidth=1.2,
            )
    axes.set_yticks(range(len(rows)), [_plain(f"{row.task}, {row.metric}") for _, row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("score with its 95% interval; dotted: guessing")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _plain(text: str) -> str:
    """No formula, whatever it holds."""
    return text.replace("$", r"\$")


def _axes(size: tuple[float, float]) -> "tuple[Figure, Axes]":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _drawn(figure: "Figure", form: str) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format=form, metadata={"Date": None} if form == "svg" else None)
    return content.getvalue()
