"""Which of several times stands out from the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

CONSISTENT = 0.6745
"""Median absolute deviation of a normal distribution whose standard deviation is one."""
LEAST_SPREAD = 0.05
"""The others' times are taken to spread by this share of their median at least: few ranks, or very even ones, spread by chance."""


@dataclass(frozen=True)
class Outlier:
    """A rank whose time is longest by its score. ratio: of its time to the others' median. z: the modified z-score."""

    rank: int
    ratio: float
    z: float


def slowest(seconds: Sequence[float], classes: Sequence[int]) -> Outlier:
    """The rank with the largest modified z-score, 0.6745 (x - median) / MAD, against the others of its class.

    Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993. seconds, classes: of each rank; those of a class do the same
    work. A rank is left out of what it is compared with, so that two can be told apart, and one alone in its class scores 0.
    """
    scored = []
    for rank, (own, kind) in enumerate(zip(seconds, classes, strict=True)):
        others = [s for r, (s, k) in enumerate(zip(seconds, classes, strict=True)) if k == kind and r != rank]
        if not others:
            scored.append(Outlier(rank, 1.0, 0.0))
            continue
        middle = median(others)
        spread = median(abs(other - middle) for other in others)
        least = max(middle, 1e-9) * LEAST_SPREAD * CONSISTENT
        scored.append(
            Outlier(rank, own / max(middle, 1e-9), CONSISTENT * (own - middle) / max(spread, least))
        )
    return max(scored, key=lambda one: one.z)
