"""The parts of report.html on groups of people: whom steps removed more often, and whom documents mention."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from megalm.html.chart import Shown, first
from megalm.html.picture import strip

MOST_GROUPS = 30
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
    uneven = sorted(sorted(cells), key=lambda group: max(map(_unevenness, cells[group])), reverse=True)
    rows = [(group, cells[group]) for group in sorted(uneven[:MOST_GROUPS])]
    return RemovalTable(Shown(steps, len(entries) - len(steps)), Shown(rows, len(cells) - len(rows)))


def representation_tables(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """For each step `representation` the groups and words mentioned most, and the words that stand beside a group."""
    return [
        {
            **entry,
            "groups": _most_mentioned(entry["groups"], MOST_GROUPS),
            "words_of": _most_mentioned(entry["words_of"], MOST_WORDS),
            "associations": first([row for row in entry["associations"] if _is_beside(row)], MOST_WORDS),
        }
        for entry in entries
    ]


def _most_mentioned(rows: Sequence[Entry], most: int) -> Shown:
    """The rows of most mentions in order of their names, with bars of their share of the axis."""
    shown = first(sorted(rows, key=lambda row: (-row["mentions"], row["group"])), most)
    drawn = [
        (row, strip((row["share_of_axis"] or 0, "kept")))
        for row in sorted(shown.rows, key=lambda row: row["group"])
    ]
    return Shown(drawn, shown.more)


def _is_beside(row: Entry) -> bool:
    """Whether sentences with the group hold the word more often than chance would have it."""
    return bool(row["significant"] and row["together"] and row["low"] is not None and row["low"] > 1)


def _heat(row: Entry) -> str:
    """CSS class of a cell: how much more or less often the group's documents were removed than those they are compared with."""
    if not row["significant"]:
        return "heat-none"
    if not row["relative_risk"]:
        return "heat-less-4"
    steps = round(2 * math.log2(row["relative_risk"]))  # half steps of a doubling
    if steps == 0:
        return "heat-same"
    return f"heat-{'more' if steps > 0 else 'less'}-{min(abs(steps), 4)}"


def _unevenness(row: Entry | None) -> tuple[float, int]:
    """How far a group's relative risk is from 1, 0 where that may be chance; then how many documents mention it."""
    if row is None:
        return 0.0, 0
    risk = abs(math.log(row["relative_risk"])) if row["relative_risk"] else math.inf
    return risk if row["significant"] else 0.0, row["documents_in"]
