"""The funnel of a corpus: how many documents and characters are left after each step, as rows and as lines of text."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from megalm.html.numbers import percent

_LONGEST_NAME = 40
_MOST_REASONS = 4


class FunnelRow(NamedTuple):
    """What is left after a source, the reading of all sources, a step, or at the end.

    `reasons` are the commonest first. Shares are of all documents read, and of the most characters that there were:
    a raw page has none before its text is extracted.
    """

    kind: Literal["source", "read", "step", "kept"]
    name: str
    place: int
    documents: int
    documents_share: float
    characters: int
    characters_share: float
    removed: int
    reasons: list[tuple[str, int]]


def funnel(report: dict[str, Any]) -> list[FunnelRow]:
    """The rows: the sources, their sum where they are several, the steps, and what was kept."""
    sources, steps = report["sources"], report["steps"]
    read = sum(source["documents_out"] for source in sources)
    characters = sum(source["characters_out"] for source in sources)
    most = max([characters, report["characters"], *(step["characters_out"] for step in steps)]) or 1

    def row(kind: Any, name: str, place: int, documents: int, characters: int, step: Any = None) -> FunnelRow:
        removed = step["removed"] if step else {}
        reasons = sorted(removed.items(), key=lambda pair: (-pair[1], pair[0]))
        shares = documents / (read or 1), characters / most
        return FunnelRow(
            kind, name, place, documents, shares[0], characters, shares[1], sum(removed.values()), reasons
        )

    rows = [
        row("source", s["step"], i, s["documents_out"], s["characters_out"]) for i, s in enumerate(sources)
    ]
    if len(rows) > 1:
        rows.append(row("read", "all sources", 0, read, characters))
    rows += [
        row("step", s["step"], i, s["documents_out"], s["characters_out"], s) for i, s in enumerate(steps)
    ]
    return [*rows, row("kept", "kept", 0, report["documents"], report["characters"])]


def funnel_lines(rows: Sequence[FunnelRow]) -> list[str]:
    """The rows as an aligned table with a heading, the commonest reasons at the end of each line."""
    cells = [("step", "documents", "", "characters", "", "removed"), *map(_cells, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(6)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(widths[i]) for i, cell in enumerate(row[1:5], 1)), row[5]])
        .rstrip()
        for row in cells
    ]  # fmt: skip


def _cells(row: FunnelRow) -> tuple[str, ...]:
    name = f"+ {row.name}" if row.kind == "source" else row.name
    name = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    reasons = ", ".join(
        f"{reason.removeprefix(f'{row.name}.')} {count:,}" for reason, count in row.reasons[:_MOST_REASONS]
    )
    more = len(row.reasons) - _MOST_REASONS
    return (
        name,
        f"{row.documents:,}",
        percent(row.documents_share),
        f"{row.characters:,}" if row.characters else "-",
        percent(row.characters_share) if row.characters else "-",
        f"{reasons}, {more} more" if more > 0 else reasons,
    )
