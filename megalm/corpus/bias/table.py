"""Figures by group as text: a table of removals a step, and one of mentions and associations."""

from collections.abc import Iterable, Iterator
from typing import Any

FEW = 5
"""Rows about fewer documents (or, of associations, expected sentences) are left out of texts, not of the JSON."""


def removal_lines(figures: list[dict[str, Any]], top: int) -> Iterator[str]:
    """For each step its `top` groups, those first that differ most surely from others of their axis."""
    for step in figures:
        rows = [
            row
            for row in step["groups"]
            if "." in row["group"] and min(row["documents_in"], row["others_in"]) >= FEW
        ]
        if not rows:
            continue
        yield (
            f"{step['step']}: {step['removed']:,} of {step['documents_in']:,} documents removed "
            f"({_percent(step['rate'])}); by group, against other groups of its axis (* beyond chance):"
        )
        yield from _table(
            (
                "group",
                "removed",
                "of",
                "rate",
                "95 % interval",
                "ratio",
                "others' rate",
                "relative risk",
                "95 % interval",
                "",
            ),
            (_removal_cells(row) for row in sorted(rows, key=lambda row: (row["p"], row["group"]))[:top]),
        )


def representation_lines(figures: dict[str, Any], top: int) -> Iterator[str]:
    """Mentions by group, the commonest words, and the strongest associations; `top` rows of each of the latter."""
    yield f"{figures['documents']:,} documents, {figures['sentences']:,} sentences, {figures['words']:,} words"
    if others := figures["documents_in_other_languages"]:
        yield f"{others:,} documents in other languages were passed by"
    head = ("", "documents", "share", "95 % interval", "mentions", "of axis", "per million words")
    yield from _table(head, (_mention_cells(row) for row in figures["groups"] if row["documents"] >= FEW))
    words = sorted(figures["words_of"], key=lambda row: (-row["mentions"], row["group"]))
    yield from _table(head, map(_mention_cells, words[:top]))
    strong = [row for row in figures["associations"] if row["significant"] and row["expected"] >= FEW][:top]
    if strong:
        yield "word beside group, against other sentences of the axis (beyond chance, sentences as if independent):"
        yield from _table(
            ("group", "word", "sentences", "documents", "expected", "odds ratio", "95 % interval", "PMI"),
            map(_association_cells, strong),
        )


def _removal_cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["group"],
        f"{row['removed']:,}",
        f"{row['documents_in']:,}",
        _percent(row["rate"]),
        f"{_percent(row['low'])} - {_percent(row['high'])}",
        f"{row['ratio']:.2f}",
        _percent(row["others_removed"] / row["others_in"]),
        f"{row['relative_risk']:.2f}",
        f"{row['relative_risk_low']:.2f} - {row['relative_risk_high']:.2f}",
        "*" if row["significant"] else "",
    )


def _mention_cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["group"],
        f"{row['documents']:,}",
        _percent(row["share"]),
        f"{_percent(row['low'])} - {_percent(row['high'])}",
        f"{row['mentions']:,}",
        _percent(row["share_of_axis"]),
        f"{row['per_million_words']:,.0f}",
    )


def _association_cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["group"],
        row["word"],
        f"{row['together']:,}",
        f"{row['documents']:,}",
        f"{row['expected']:.1f}",
        f"{row['odds_ratio']:.2f}",
        f"{row['low']:.2f} - {row['high']:.2f}",
        "" if row["pmi"] is None else f"{row['pmi']:+.2f}",
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Lines of a table, texts to the left, numbers to the right."""
    cells = [head, *rows]
    if len(cells) == 1:
        return
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    left = [head[i] in ("", "group", "word") and i < 2 for i in range(len(head))]
    for row in cells:
        made = (
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(row, widths, left, strict=True)
        )
        yield f"    {'  '.join(made)}".rstrip()
