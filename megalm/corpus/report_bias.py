"""The parts of report.html on groups of people: whom steps removed more often, and whom documents mention."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from megalm.html.chart import Shown, first
from megalm.html.picture import strip

MOST_GROUPS = 40
MOST_STEPS = 10
MOST_WORDS = 20

Entry = Mapping[str, Any]


class RemovalTable(NamedTuple):
    """Rows of groups, columns of steps; a cell is a group's entry with its `heat`, or None."""

    steps: Shown
    groups: Shown


def removal_table(entries: Sequence[Entry]) -> RemovalTable:
    """The steps that removed most, and the groups that they removed most unevenly, in order of their names."""
    ranked = sorted(range(len(entries)), key=lambda i: -entries[i]["removed"])[:MOST_STEPS]
    steps = [entries[i] for i in sorted(ranked)]
    cells: dict[str, list[Any]] = {}
    for column, step in enumerate(steps):
        for row in step["groups"]:
            cells.setdefault(row["group"], [None] * len(steps))[column] = {**row, "heat": _heat(row)}
    uneven = sorted(cells, key=lambda group: (-max(map(_unevenness, cells[group])), group))
    rows = [(group, cells[group]) for group in sorted(uneven[:MOST_GROUPS])]
    return RemovalTable(Shown(steps, len(entries) - len(steps)), Shown(rows, len(cells) - len(rows)))


def representation_tables(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """For each step `representation` its groups, words and associations, with bars."""
    return [
        {
            **entry,
            "groups": _with_bars(sorted(entry["groups"], key=lambda row: row["axis"]), MOST_GROUPS),
            "words_of": _with_bars(sorted(entry["words_of"], key=lambda row: -row["mentions"]), MOST_WORDS),
            "associations": first([row for row in entry["associations"] if row["significant"]], MOST_WORDS),
        }
        for entry in entries
    ]


def _with_bars(rows: Sequence[Entry], most: int) -> Shown:
    """Bars show the share of an axis's mentions."""
    shown = first(rows, most)
    drawn = [(row, strip((row["share_of_axis"] or 0, "kept"))) for row in shown.rows]
    return Shown(drawn, shown.more)


def _heat(row: Entry) -> str:
    """CSS class of a cell: how much more or less often than others the group's documents were removed."""
    if not row["significant"]:
        return "heat-none"
    if not row["ratio"]:
        return "heat-less-4"
    steps = round(2 * math.log2(row["ratio"]))  # half steps of a doubling
    if steps == 0:
        return "heat-same"
    return f"heat-{'more' if steps > 0 else 'less'}-{min(abs(steps), 4)}"


def _unevenness(row: Entry | None) -> float:
    """How far a group's rate is from the step's, 0 where that may be chance."""
    if row is None or not row["significant"]:
        return 0.0
    return abs(math.log(row["ratio"])) if row["ratio"] else math.inf
