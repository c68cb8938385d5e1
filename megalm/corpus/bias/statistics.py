"""Figures with their uncertainty: shares, odds ratios, relative risks, mutual information, false discoveries."""

import math
from collections.abc import Sequence
from typing import NamedTuple

Z = 1.959963984540054
"""Half width of a 95 % interval of the normal distribution, in standard deviations."""


class Estimate(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


class Ratio(NamedTuple):
    """A ratio, its 95 % interval, and how probable one as far from 1 is by chance (two sides)."""

    value: float
    low: float
    high: float
    p: float


def share(count: int, total: int) -> Estimate:
    """`count` of `total` with Wilson's score interval (Wilson 1927, JASA 22:209); `total` > 0."""
    rate, z2 = count / total, Z * Z / total
    middle = rate + z2 / 2
    half = Z * math.sqrt(rate * (1 - rate) / total + z2 / total / 4)
    low = 0.0 if count == 0 else (middle - half) / (1 + z2)
    high = 1.0 if count == total else (middle + half) / (1 + z2)
    return Estimate(rate, low, high)


def odds_ratio(a: float, b: float, c: float, d: float) -> Ratio:
    """(a/b) / (c/d) of a table of counts ((a, b), (c, d)), with Woolf's interval of its logarithm.

    log OR +- Z sqrt(1/a + 1/b + 1/c + 1/d) (Woolf 1955, Ann. Hum. Genet. 19:251). Where a count is 0, a half is added to
    all four (Haldane 1956, Ann. Hum. Genet. 20:309; Anscombe 1956, Biometrika 43:461).
    """
    if 0 in (a, b, c, d):
        a, b, c, d = a + 0.5, b + 0.5, c + 0.5, d + 0.5
    return _of_log(math.log(a * d / (b * c)), math.sqrt(1 / a + 1 / b + 1 / c + 1 / d))


def relative_risk(count: float, total: float, other_count: float, other_total: float) -> Ratio:
    """(count/total) / (other_count/other_total) of two separate sets, with Katz's interval of its logarithm.

    log RR +- Z sqrt(1/count - 1/total + 1/other_count - 1/other_total) (Katz et al. 1978, Biometrics 34:469). Where one of the
    four cells is 0, a part of 1 in proportion to the set is added to both cells of each (Sweeting et al. 2004, Statistics in
    Medicine 23:1351): halves would make something out of a few documents beside many. Both totals must be > 0.
    """
    if 0 in (count, total - count, other_count, other_total - other_count):
        part = total / (total + other_total)
        count, total = count + part, total + 2 * part
        other_count, other_total = other_count + 1 - part, other_total + 2 * (1 - part)
    deviation = math.sqrt(1 / count - 1 / total + 1 / other_count - 1 / other_total)
    return _of_log(math.log(count * other_total / (total * other_count)), deviation)


def mutual_information(together: int, first: int, second: int, total: int) -> float:
    """log2 p(x, y) / (p(x) p(y)) in bits (PMI: Church and Hanks 1990, Computational Linguistics 16:22); `together` > 0."""
    return math.log2(together * total / (first * second))


def discoveries(p_values: Sequence[float], rate: float = 0.05) -> list[bool]:
    """Which of the tests to believe, so that on average `rate` of these are chance (Benjamini and Hochberg 1995)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    believed = max((n for n, i in enumerate(order, 1) if p_values[i] <= rate * n / len(p_values)), default=0)
    found = [False] * len(p_values)
    for i in order[:believed]:
        found[i] = True
    return found


def _of_log(middle: float, deviation: float) -> Ratio:
    p = math.erfc(abs(middle) / deviation / math.sqrt(2))
    return Ratio(math.exp(middle), math.exp(middle - Z * deviation), math.exp(middle + Z * deviation), p)
