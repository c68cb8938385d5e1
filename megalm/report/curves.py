"""Draws the figures of runs: a chart for each, a colour for each run, with its numbers in a table."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from megalm.html.lines import Line, line_chart
from megalm.report.figures import Series
from megalm.report.panels import Group, Panel, groups_of, with_phases
from megalm.report.run import RunRecord
from megalm.smoothing import smooth

MOST_OTHERS = 60
"""Charts of figures that are not known; classifiers of many classes have hundreds."""
_FEWEST_TO_SMOOTH = 10


class Extent(NamedTuple):
    """What a table says of a curve: steps, and the first, last, least and largest number; None where none is finite."""

    run: str
    style: str
    kind: str
    points: int
    first: float | None
    last: float | None
    least: float | None
    largest: float | None


class Curve(NamedTuple):
    """A chart with its table, and the lines in it. smoothed: some line is; name: the figure's in the metrics file."""

    name: str
    title: str
    unit: str
    picture: Markup
    beyond: int
    smoothed: bool
    rows: list[Extent]
    lines: list[Line]


class Curves(NamedTuple):
    """A titled group of charts, and how many more there would be."""

    title: str
    charts: list[Curve]
    more: int


class Family(NamedTuple):
    """Runs that learned the same kind of thing, by name and colour, and their charts; `others` of figures not known."""

    title: str
    runs: list[tuple[str, str]]
    groups: list[Curves]
    others: Curves | None


def families(runs: Sequence[RunRecord]) -> list[Family]:
    """The charts of all runs; those of one family in one."""
    styles = {run.name: f"run-{place}" for place, run in enumerate(runs)}
    found = []
    for title in dict.fromkeys(run.family for run in runs):
        members = [run for run in runs if run.family == title]
        series = {run.name: with_phases(run.figures) for run in members}
        drawn = [_draw(group, members, series, styles) for group in groups_of(members[0].task, members)]
        groups = [curves for curves in drawn if curves.title and curves.charts]
        others = next((curves for curves in drawn if not curves.title and curves.charts), None)
        found.append(Family(title, [(run.name, styles[run.name]) for run in members], groups, others))
    return found


def _draw(
    group: Group,
    runs: Sequence[RunRecord],
    series: Mapping[str, Mapping[str, Series]],
    styles: Mapping[str, str],
) -> Curves:
    panels = group.panels if group.title else group.panels[:MOST_OTHERS]
    charts = [_chart(panel, runs, series, styles) for panel in panels]
    return Curves(group.title, [chart for chart in charts if chart], len(group.panels) - len(panels))


def _chart(
    panel: Panel,
    runs: Sequence[RunRecord],
    series: Mapping[str, Mapping[str, Series]],
    styles: Mapping[str, str],
) -> Curve | None:
    """The chart of a figure; None where no run has a finite number of it."""
    lines: list[Line] = []
    rows: list[Extent] = []
    smoothed = False
    for run in runs:
        style = styles[run.name]
        trained, validated = series[run.name].get(panel.name), run.figures.validation.get(panel.name)
        if trained is not None:
            values = trained.values * panel.scale
            is_smooth = panel.noisy and len(values) >= _FEWEST_TO_SMOOTH
            lines += [Line(run.name, style, "raw", trained.steps, values)] if is_smooth else []
            shown = smooth(values) if is_smooth else values
            lines.append(Line(run.name, style, "line", trained.steps, shown))
            rows.append(_extent(run.name, style, "training", values))
            smoothed = smoothed or is_smooth
        if validated is not None and panel.validated:
            values = validated.values * panel.scale
            lines.append(Line(f"{run.name}, validation", style, "dots", validated.steps, values))
            rows.append(_extent(run.name, style, "validation", values))
    told = f"{panel.title}, {panel.unit} against steps; the table below has the numbers"
    drawn = line_chart(lines, told, panel.unit)
    if not drawn:
        return None
    return Curve(panel.name, panel.title, panel.unit, drawn.svg, drawn.beyond, smoothed, rows, lines)


def _extent(run: str, style: str, kind: str, values: np.ndarray) -> Extent:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return Extent(run, style, kind, len(values), None, None, None, None)
    first, last, least, largest = finite[0], finite[-1], finite.min(), finite.max()
    return Extent(run, style, kind, len(values), float(first), float(last), float(least), float(largest))
