"""Tokenizers side by side: a table and a plot over one corpus, and where two of them cut a text differently."""

import io
import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megalm import atomic
from megalm.errors import UserError
from megalm.tokenizer.base import Tokenizer
from megalm.tokenizer.report import CorpusReport, Measure, by_size

PLOT_SUFFIXES = (".png", ".svg")
MAX_PLOTTED_GROUPS = 25
MUCH_UNKNOWN = 0.1
"""Share of unknown tokens from which bytes a token says little."""
# Told apart by hue, by lightness in a grey print, and by hatching.
COLOURS = ("#1d4ed8", "#f59e0b", "#047857", "#f472b6", "#7c3aed", "#94a3b8")
HATCHES = ("", "//", "..", "xx", "--", "\\\\")


class Difference(NamedTuple):
    """Characters [start, stop) of a text that two tokenizers cut into other pieces."""

    start: int
    stop: int
    pieces: tuple[list[str], list[str]]


def comparison(
    names: Sequence[str], tokenizers: Sequence[Tokenizer], reports: Sequence[CorpusReport], hidden_size: int
) -> list[dict[str, Any]]:
    """A row for each tokenizer: size, measures in all and by group, and its embedding's parameters at `hidden_size`."""
    rows = []
    for name, tokenizer, report in zip(names, tokenizers, reports, strict=True):
        summary = report.summary(examples=0)
        rows.append(
            {
                "tokenizer": name,
                "vocab_size": tokenizer.vocab_size,
                "embedding_parameters": tokenizer.vocab_size * hidden_size,
                **summary["total"],
                "unused_pieces": summary["unused_pieces"],
                "groups": summary["groups"],
            }
        )
    return rows


def differences(first: Tokenizer, second: Tokenizer, text: str) -> list[Difference]:
    """Where the two cut `text` at other characters, the pieces of each between the nearest common cuts."""
    cuts = [_cuts(tokenizer, text) for tokenizer in (first, second)]
    found: list[Difference] = []
    for start, stop in itertools.pairwise(sorted(set(cuts[0]) & set(cuts[1]))):
        between = [each[bisect_right(each, start) : bisect_left(each, stop)] for each in cuts]
        if between[0] != between[1]:
            pieces = [[text[a:b] for a, b in itertools.pairwise([start, *inner, stop])] for inner in between]
            found.append(Difference(start, stop, (pieces[0], pieces[1])))
    return found


def _cuts(tokenizer: Tokenizer, text: str) -> list[int]:
    """Where tokens of `text` end and the next ones begin, its begin and end included."""
    _, offsets = tokenizer.encode_with_offsets(text)
    inside = (stop for (start, stop), (after, _) in itertools.pairwise(offsets) if start < stop <= after)
    return sorted({0, len(text), *inside})


def check_plot_path(path: Path) -> None:
    """Raise UserError unless `path` names a picture of a kind that is drawn."""
    if path.suffix not in PLOT_SUFFIXES:
        raise UserError(f"plot {path} ends in '{path.suffix}'; name a file in {' or '.join(PLOT_SUFFIXES)}")


def write_plot(path: Path, names: Sequence[str], reports: Sequence[CorpusReport], key: str | None) -> None:
    """Write a picture (.png or .svg) of bytes a token: in all and, with `key`, of its largest groups."""
    check_plot_path(path)
    rows: list[tuple[str, list[Measure | None]]] = [("all", [report.total for report in reports])]
    if key:
        largest = [name for name, _ in by_size(reports[0].groups[key])][:MAX_PLOTTED_GROUPS]
        rows += [(name, [report.groups[key].get(name) for report in reports]) for name in largest]
    atomic.write_bytes(path, _draw(names, rows, key, path.suffix[1:]))


def _draw(
    names: Sequence[str], rows: Sequence[tuple[str, list[Measure | None]]], key: str | None, form: str
) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = 0.8 / len(names)
    figure = Figure(figsize=(8, 1.6 + len(rows) * max(0.35, 0.2 * len(names))), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    limit = _limit([measure for _, measures in rows for measure in measures])
    for number, name in enumerate(names):
        column = [measures[number] for _, measures in rows]
        places = [row + (number - (len(names) - 1) / 2) * height for row in range(len(rows))]
        bars = axes.barh(
            places,
            [min(_bytes_per_token(measure), limit) for measure in column],
            height * 0.92,
            label=name,
            color=COLOURS[number % len(COLOURS)],
            hatch=HATCHES[number % len(HATCHES)],
            edgecolor="white",
            linewidth=0.4,
        )
        for bar, measure in zip(bars, column, strict=True):
            bar.set_alpha(0.35 if _unknown_rate(measure) > MUCH_UNKNOWN else 1)
        axes.bar_label(bars, [_label(measure) for measure in column], padding=3, fontsize=8, color="#334155")
    axes.set_xlim(0, limit * 1.35)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("bytes a token (more is shorter sequences)", fontsize=9)
    axes.set_ylabel(key or "", fontsize=9)
    axes.margins(y=0.02)
    axes.grid(axis="x", color="#e2e8f0", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=min(3, len(names)), frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form)
    return buffer.getvalue()


def _bytes_per_token(measure: Measure | None) -> float:
    return measure.bytes / measure.tokens if measure and measure.tokens else 0.0


def _unknown_rate(measure: Measure | None) -> float:
    return measure.unknown / measure.tokens if measure and measure.tokens else 0.0


def _limit(measures: Sequence[Measure | None]) -> float:
    """The longest bar: one unknown token may stand for a whole sentence, and would squeeze all others."""
    known = [measure for measure in measures if _unknown_rate(measure) <= MUCH_UNKNOWN]
    return max(map(_bytes_per_token, known or measures))


def _label(measure: Measure | None) -> str:
    rate = _unknown_rate(measure)
    return f"{_bytes_per_token(measure):.2f}" + (f" ({rate:.0%} unknown)" if rate > MUCH_UNKNOWN else "")
