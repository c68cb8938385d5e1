"""Draws what compression costs and brings: bars of size, speed and perplexity."""

import io
from collections.abc import Sequence
from typing import Any

COLOUR, SOURCE_COLOUR, TEXT, GRID = "#2563eb", "#64748b", "#334155", "#e2e8f0"
_PANELS = (
    ("stored_bytes", "weights, MB", lambda value: value / 1e6, "{:.4g}"),
    ("tokens_per_second", "tokens/s", float, "{:.4g}"),
    ("perplexity", "perplexity (less is better)", float, "{:.4g}"),
)


def draw(rows: Sequence[dict[str, Any]], form: str) -> bytes:
    """A picture in the form `png` or `svg`: a panel for each figure that any row has, the first row in another colour."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [panel for panel in _PANELS if any(row[panel[0]] is not None for row in rows)]
    size = (3.2 * len(panels) + 1.5, 1.2 + 0.32 * len(rows))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for number, (key, label, scaled, form_of) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), number)
        values = [0.0 if row[key] is None else scaled(row[key]) for row in rows]
        colours = [SOURCE_COLOUR, *[COLOUR] * (len(rows) - 1)]
        bars = axes.barh(range(len(rows)), values, 0.7, color=colours)
        labels = [
            "-" if row[key] is None else form_of.format(value)
            for row, value in zip(rows, values, strict=True)
        ]
        axes.bar_label(bars, labels, padding=3, fontsize=8, color=TEXT)
        axes.set_xlim(0, max([*values, 1e-9]) * 1.3)
        names = [row["name"] for row in rows] if number == 1 else [""] * len(rows)
        axes.set_yticks(range(len(rows)), names, fontsize=9)
        axes.invert_yaxis()
        axes.set_xlabel(label, fontsize=9)
        axes.grid(axis="x", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form)
    return buffer.getvalue()
