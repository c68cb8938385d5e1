"""Histograms as reports show them: a column chart of numbers or bars of labels, always with its table."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from megalm.html.bins import make_bins
from megalm.html.picture import columns, strip

MOST_LABELS = 12
STYLES = ("before", "kept")


class Shown(NamedTuple):
    """The first few of some things, and how many there are more."""

    rows: list[Any]
    more: int


class ChartRow(NamedTuple):
    """A bin or a label, its counts in each series, and for a label its bar."""

    label: str
    counts: tuple[int, ...]
    bar: Markup | None


class Chart(NamedTuple):
    """A titled histogram of one or two series; `left_out` labels, or values that are no numbers, have no row."""

    title: str
    names: list[str]
    picture: Markup | None
    rows: list[ChartRow]
    left_out: int
    left_out_counts: tuple[int, ...]


def first(rows: Sequence[Any], most: int) -> Shown:
    """At most the first `most` of `rows`."""
    return Shown(list(rows[:most]), max(0, len(rows) - most))


def make_chart(title: str, series: Mapping[str, Mapping[str, int]]) -> Chart:
    """The chart of one histogram, or of two (before and after); labels, the most frequent first."""
    names, histograms = list(series), list(series.values())
    styles = STYLES[-len(names) :]
    totals = tuple(sum(histogram.values()) for histogram in histograms)
    if bins := make_bins(*histograms):
        told = f"{title}: column chart of {', '.join(names)}; the table below has the numbers"
        rows = [ChartRow(bin.label, bin.counts, None) for bin in bins]
        return Chart(title, names, columns(bins, names, styles, told), rows, 0, _rest(totals, rows))
    labels = sorted(
        {label for histogram in histograms for label in histogram},
        key=lambda label: (*(-histogram.get(label, 0) for histogram in histograms), label),
    )
    most = max((max(histogram.values(), default=0) for histogram in histograms), default=0) or 1
    rows = []
    for label in labels[:MOST_LABELS]:
        counts = tuple(histogram.get(label, 0) for histogram in histograms)
        shares = [count / most for count in counts]
        # Of two series the second lies within the first.
        parts = [(shares[-1], "kept"), *((share - shares[-1], "before") for share in shares[:-1])]
        rows.append(ChartRow(label, counts, strip(*parts)))
    return Chart(title, names, None, rows, len(labels) - len(rows), _rest(totals, rows))


def _rest(totals: tuple[int, ...], rows: list[ChartRow]) -> tuple[int, ...]:
    return tuple(total - sum(row.counts[i] for row in rows) for i, total in enumerate(totals))
