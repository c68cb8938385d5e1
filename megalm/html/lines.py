"""Charts of curves as small SVG pictures: numbers against steps, a colour for each run, whatever is written in their names."""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from megalm.html.picture import element

WIDTH, HEIGHT = 360, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 22, 30
MOST_POINTS = 400
"""Of a line: more cannot be told apart in a picture of this width."""
_TICKS = 4
_OUTLIERS = 0.02
_LARGEST = 1e100  # what is larger has no place on any axis
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


Numbers: TypeAlias = NDArray[np.float64]


class Line(NamedTuple):
    """Numbers against steps (ascending; NaN is a gap), what the pointer is told, and the CSS class that colours them.

    kind: `raw` faint behind the others, `line`, `dots` joined by dashes.
    """

    name: str
    style: str
    kind: str
    x: Numbers
    y: Numbers


class Picture(NamedTuple):
    """The chart, and how many numbers lie beyond its axis."""

    svg: Markup
    beyond: int


class _Frame(NamedTuple):
    """The numbers at the borders of the picture."""

    first: float
    last: float
    low: float
    high: float

    def place(self, x: Numbers, y: Numbers) -> tuple[Numbers, Numbers]:
        """Where points stand in the picture, those beyond its axis at its border."""
        right = _LEFT + (x - self.first) / (self.last - self.first) * (WIDTH - _LEFT - _RIGHT)
        up = np.clip((y - self.low) / (self.high - self.low), 0, 1)
        return right, HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM)


def line_chart(
    lines: Sequence[Line], title: str, unit: str, x_title: str = "step", whole: bool = True
) -> Picture | None:
    """The chart of `lines`, with the unit above the y axis; None where no number of any line is finite.

    whole: the x axis is marked at whole numbers alone. The y axis spans all lines but `raw` ones, of which the hundredth
    part at either end may lie beyond it.
    """
    lines = [line._replace(y=np.where(np.abs(line.y) < _LARGEST, line.y, np.nan)) for line in lines]
    if (span := _span(lines)) is None:
        return None
    ticks = round_ticks(*span)
    xs = np.concatenate([line.x[np.isfinite(line.y)] for line in lines])
    first, last = float(xs.min()), float(xs.max())
    if first == last:
        first, last = first - 0.5, last + 0.5
    frame = _Frame(first, last, ticks[0], ticks[-1])
    drawn = [_curve(line, frame) for kind in ("raw", "dots", "line") for line in lines if line.kind == kind]
    beyond = sum(int(((line.y < frame.low) | (line.y > frame.high)).sum()) for line in lines)
    svg = element(
        "svg",
        *_y_axis(ticks, frame, unit),
        *_x_axis(frame, x_title, whole),
        *drawn,
        class_="chart curves",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=title,
    )
    return Picture(svg, beyond)


def round_ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers from `low` or less on to near `high`, or beyond."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    begin, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(begin, end + 1)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """As many digits as tell the ticks apart, alike for all of them: 0.2, 0.4; 20k, 40k; 1e-05, 2e-05."""
    most, step = max(map(abs, ticks)), ticks[1] - ticks[0]
    if most < 1e-3:
        return [f"{tick:g}" for tick in ticks]
    if most >= 1e15:
        return [f"{tick:.3g}" for tick in ticks]
    scale, prefix = next((unit for unit in _UNITS if most >= unit[0] and most >= 1e4), (1.0, ""))
    decimals = max(0, -math.floor(math.log10(step / scale * 1.0001)))
    return [f"{tick / scale:.{decimals}f}{prefix}" if tick else "0" for tick in ticks]


def thinned(x: Numbers, y: Numbers) -> tuple[Numbers, Numbers]:
    """At most about MOST_POINTS of the points: the least and the largest of each stretch, first and last always."""
    if len(x) <= MOST_POINTS:
        return x, y
    kept = {0, len(x) - 1}
    for stretch in np.array_split(np.arange(len(x)), MOST_POINTS // 2):
        finite = stretch[np.isfinite(y[stretch])]
        # a stretch without a number stays a gap
        kept |= {finite[y[finite].argmin()], finite[y[finite].argmax()]} if len(finite) else {stretch[0]}
    chosen = np.array(sorted(kept))
    return x[chosen], y[chosen]


def _span(lines: Sequence[Line]) -> tuple[float, float] | None:
    """Least and largest number that the axis must show, never the same."""
    wanted = []
    for line in lines:
        values = line.y[np.isfinite(line.y)]
        if line.kind == "raw" and len(values):
            values = np.quantile(values, [_OUTLIERS / 2, 1 - _OUTLIERS / 2])
        wanted.append(values)
    found = np.concatenate(wanted) if wanted else np.empty(0)
    if not len(found):
        return None
    low, high = float(found.min()), float(found.max())
    least = max(abs(low), abs(high)) * 1e-6 or 1e-6  # of numbers that are all alike
    return (low, high) if high - low > least else (low - least / 2, high + least / 2)


def _curve(line: Line, frame: _Frame) -> Markup:
    x, y = thinned(line.x, line.y)
    finite = np.isfinite(y)
    right, down = frame.place(x, np.where(finite, y, 0))
    path, dots, pen = [], [], "M"
    for is_number, point in zip(finite, zip(right, down, strict=True), strict=True):
        if not is_number:
            pen = "M"
            continue
        path.append(f"{pen}{point[0]:.1f} {point[1]:.1f}")
        dots.append(point)
        pen = "L"
    parts = [element("title", line.name), element("path", d="".join(path))]
    if line.kind == "dots" or (line.kind == "line" and len(dots) == 1):
        parts += [element("circle", cx=float(cx), cy=float(cy), r=2.5) for cx, cy in dots]
    return element("g", *parts, class_=f"{line.kind} {line.style}")


def _y_axis(ticks: Sequence[float], frame: _Frame, unit: str) -> list[Markup]:
    _, heights = frame.place(np.zeros(len(ticks)), np.array(ticks))
    parts = [element("text", unit, x=4, y=12)]
    for height, label in zip(heights.tolist(), tick_labels(ticks), strict=True):
        parts.append(element("line", class_="grid", x1=_LEFT, x2=WIDTH - _RIGHT, y1=height, y2=height))
        parts.append(element("text", label, x=_LEFT - 5, y=height + 4, text_anchor="end"))
    return parts


def _x_axis(frame: _Frame, title: str, whole: bool) -> list[Markup]:
    ticks = [
        tick
        for tick in round_ticks(frame.first, frame.last)
        if frame.first <= tick <= frame.last and not (whole and tick % 1)
    ]
    ticks = ticks or [round((frame.first + frame.last) / 2)]
    places, _ = frame.place(np.array(ticks, dtype=float), np.zeros(len(ticks)))
    labels = tick_labels(ticks) if len(ticks) > 1 else [f"{ticks[0]:g}"]
    parts = [
        element("text", label, x=x, y=HEIGHT - 17, text_anchor="middle")
        for x, label in zip(places.tolist(), labels, strict=True)
    ]
    return [*parts, element("text", title, x=WIDTH - _RIGHT, y=HEIGHT - 4, text_anchor="end")]
