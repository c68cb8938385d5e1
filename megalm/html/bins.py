"""Sorts a histogram's values into a few bins with round borders, logarithmic where they span orders of magnitude."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from megalm.html.numbers import short

MOST_BINS = 24
_WIDE = 50
_SMALLEST = 1e-290
_STEPS = (1, 2, 5)
_MANTISSAS = (("1", "1.5", "2", "3", "5", "7"), ("1", "2", "5"), ("1",))


class Bin(NamedTuple):
    """Values from `low` up to `high`, the last bin's included; counts, one for each histogram."""

    low: float
    high: float
    label: str
    counts: tuple[int, ...]


def make_bins(*histograms: Mapping[str, int]) -> list[Bin] | None:
    """The same bins for all of `histograms`, whose keys are numbers; None where some are not, or none is finite.

    Keys such as nan and inf are left out.
    """
    try:
        numbers = [[(_number(key), count) for key, count in histogram.items()] for histogram in histograms]
    except ValueError:
        return None
    values = sorted({value for pairs in numbers for value, _ in pairs if math.isfinite(value)})
    if not values:
        return None
    edges = _edges(values)
    counts = [[0] * len(numbers) for _ in edges[1:]]
    for place, pairs in enumerate(numbers):
        for value, count in pairs:
            if math.isfinite(value):
                counts[min(bisect_right(edges, value), len(counts)) - 1][place] += count
    single = _are_units(values)
    return [
        Bin(low, high, short(low) if single or low == high else f"{short(low)}–{short(high)}", tuple(column))
        for (low, high), column in zip(pairwise(edges), counts, strict=True)
    ]


def _number(key: str) -> float:
    """The number, nothing where it is so small that steps between such numbers cannot be told from nothing."""
    value = float(key)
    return 0.0 if abs(value) < _SMALLEST else value


def _edges(values: Sequence[float]) -> list[float]:
    low, high = values[0], values[-1]
    if _are_units(values):
        return [float(value) for value in range(int(low), int(high) + 2)]
    if low == high:
        return [low, high]
    smallest = next((value for value in values if value > 0), None)
    if low >= 0 and smallest is not None and high > _WIDE * smallest:
        return ([0.0] if low == 0 else []) + _logarithmic(smallest, high)
    return _linear(low, high)


def _are_units(values: Sequence[float]) -> bool:
    """Whether each value can have a bin of its own."""
    return values[-1] - values[0] < MOST_BINS and all(value == int(value) for value in values)


def _logarithmic(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.floor(math.log10(high)) + 1
    for mantissas in _MANTISSAS:
        edges = [
            float(f"{mantissa}e{power}") for power in range(first - 1, last + 1) for mantissa in mantissas
        ]
        edges = _between(edges, low, high)
        if len(edges) <= MOST_BINS + 1:
            return edges
    every = -(-len(edges) // MOST_BINS)
    return [*edges[:-1:every], edges[-1]]


def _linear(low: float, high: float) -> list[float]:
    span = high / 2 - low / 2  # twice as much may be beyond the largest float
    power = math.floor(math.log10(span)) - 2
    while True:
        for step in _STEPS:
            width = float(f"{step}e{power}")
            if width > 0 and span / width <= MOST_BINS / 2 - 1:
                first, last = math.floor(low / width) - 1, math.floor(high / width) + 2
                edges = [float(f"{number * step}e{power}") for number in range(first, last + 1)]
                edges = _between(edges, low, high)
                # A score of 1 needs no bin of its own.
                return edges[:-1] if len(edges) > 2 and edges[-2] == high == 1 else edges
        power += 1


def _between(edges: list[float], low: float, high: float) -> list[float]:
    """The edges from the last that is not above `low` to the first above `high`."""
    first = bisect_right(edges, low) - 1
    return edges[first : bisect_right(edges, high) + 1]
