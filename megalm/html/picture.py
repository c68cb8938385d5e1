"""Small SVG pictures that stand in HTML pages; colours are the page's, by CSS class."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from markupsafe import Markup, escape

from megalm.html.bins import Bin
from megalm.html.numbers import short
from megalm.html.page import printable

WIDTH, HEIGHT = 360, 180
"""Of a chart, in pixels on a narrow screen: text must be large enough to read there."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 10, 10, 22
_MOST_TICKS = 6
_WIDEST_SLOT = 40.0
_THINNEST = 0.004


def element(tag: str, *children: Any, **attributes: Any) -> Markup:
    """An element with escaped attributes (class_ stands for class, text_anchor for text-anchor) and children."""
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(printable(_number(value)))}"'
        for name, value in attributes.items()
    )
    inner = "".join(str(escape(printable(child))) for child in children)
    return Markup(f"<{tag}{written}>{inner}</{tag}>")


def strip(*parts: tuple[float, str]) -> Markup:
    """A bar as wide as its place, made of `parts`: their shares of the width and CSS classes, from the left.

    For the eye alone: the numbers must stand beside it.
    """
    rectangles, begin = [], 0.0
    for share, style in parts:
        if share > 0:
            width = min(max(share, _THINNEST), 1.0)
            begin = min(begin, 1 - width)
            rectangles.append(
                element("rect", class_=style, x=1000 * begin, y=0, width=1000 * width, height=10)
            )
            begin += share
    return element(
        "svg",
        *rectangles,
        class_="strip",
        viewBox="0 0 1000 10",
        preserveAspectRatio="none",
        aria_hidden="true",
    )


def columns(bins: Sequence[Bin], names: Sequence[str], styles: Sequence[str], title: str) -> Markup:
    """A column chart of `bins`; series number i is called names[i] and has the CSS class styles[i].

    Of two series the second stands narrower before the first.
    """
    most = max((max(bin.counts) for bin in bins), default=0) or 1
    ticks = _ticks(most)
    slot = min((WIDTH - _LEFT - _RIGHT) / len(bins), _WIDEST_SLOT)
    scale = (HEIGHT - _TOP - _BOTTOM) / max(most, ticks[-1])
    ground = HEIGHT - _BOTTOM
    parts = [_grid_line(tick, ground - tick * scale) for tick in ticks]
    for place, bin in enumerate(bins):
        bars = []
        for number, (count, style) in enumerate(zip(bin.counts, styles, strict=True)):
            gap = slot * (0.06 if number == 0 else 0.26)
            height = max(count * scale, 1) if count else 0
            x = _LEFT + place * slot + gap
            bars.append(
                element("rect", class_=style, x=x, y=ground - height, width=slot - 2 * gap, height=height)
            )
        told = ", ".join(f"{name} {count:,}" for name, count in zip(names, bin.counts, strict=True))
        hover = element(
            "rect", class_="hover", x=_LEFT + place * slot, y=_TOP, width=slot, height=ground - _TOP
        )
        parts.append(element("g", element("title", f"{bin.label}: {told}"), *bars, hover))
    parts += [
        element("text", short(value), x=x, y=HEIGHT - 6, text_anchor="middle")
        for x, value in _marks(bins, slot)
    ]
    return element(
        "svg", *parts, class_="chart", viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title
    )


def _grid_line(count: int, y: float) -> Markup:
    line = element("line", class_="grid", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y)
    return line + element("text", short(count), x=_LEFT - 5, y=y + 4, text_anchor="end")


def _ticks(most: int) -> list[int]:
    """Three to five round counts from 0 on that reach about to `most`."""
    power = 10 ** (len(str(most)) - 1)
    step = next(
        step for step in (power // 5, power // 2, power, 2 * power, 5 * power) if step and most / step <= 4
    )
    return list(range(0, most + 1, step))


def _marks(bins: Sequence[Bin], slot: float) -> list[tuple[float, float]]:
    """Where on the axis which numbers stand: borders of bins, or the middle where each bin is one number."""
    if all(bin.label == short(bin.low) for bin in bins):
        marks = [(_LEFT + (place + 0.5) * slot, bin.low) for place, bin in enumerate(bins)]
    else:
        edges = [bins[0].low, *(bin.high for bin in bins)]
        marks = [(_LEFT + place * slot, edge) for place, edge in enumerate(edges)]
        if not _even(edges):  # powers of ten say more than what lies between
            tens = [mark for mark in marks if f"{mark[1]:e}".startswith("1.000000e")]
            marks = tens if len(tens) > 2 else marks
    every = -(-len(marks) // _MOST_TICKS)
    return marks[::every]


def _even(edges: Sequence[float]) -> bool:
    widths = [high - low for low, high in pairwise(edges)]
    return max(widths) <= 1.01 * min(widths)


def _number(value: Any) -> Any:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
