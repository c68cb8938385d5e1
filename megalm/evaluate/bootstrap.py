"""How sure a score is: its interval over other samples of as many questions (Efron 1979, the percentile method)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

SAMPLES = 1000
AT_ONCE = 100
LEVEL = 0.95


@dataclass(frozen=True)
class Score:
    """low, high: 95% interval; None with a single question.

    draws: the scores of the selections; scores of as many questions with one seed have the same selections.
    """

    value: float
    low: float | None
    high: float | None
    draws: Float64 | None = field(default=None, repr=False, compare=False)

    def told(self) -> dict[str, float | None]:
        """What results hold of it."""
        return {"value": self.value, "low": self.low, "high": self.high}


def same(values: Float64) -> Float64:
    """What it is given."""
    return values


def ratio_score(
    sums_Q: Sequence[float],
    weights_Q: Sequence[float],
    seed: int,
    transform: Callable[[Float64], Float64] = same,
) -> Score:
    """transform(sum of `sums_Q` / sum of `weights_Q`), an entry of each a question; with weights of 1 a mean."""
    sums, weights = np.array(sums_Q, np.float64), np.array(weights_Q, np.float64)

    def statistic(drawn_NQ: NDArray[np.int64]) -> Float64:
        return transform(sums[drawn_NQ].sum(-1) / np.maximum(weights[drawn_NQ].sum(-1), 1e-30))

    return bootstrap(statistic, len(sums), seed)


def bootstrap(statistic: Callable[[NDArray[np.int64]], Float64], questions: int, seed: int) -> Score:
    """statistic: scores (N) of N selections of questions, numbers (N, questions)."""
    value = float(statistic(np.arange(questions)[None])[0])
    if questions < 2:
        return Score(value, None, None)
    random = np.random.default_rng(seed)
    found = [
        statistic(random.integers(0, questions, (min(AT_ONCE, SAMPLES - done), questions)))
        for done in range(0, SAMPLES, AT_ONCE)
    ]
    draws = np.concatenate(found)
    return Score(value, *interval(draws), draws)


def interval(draws: Float64) -> tuple[float, float]:
    """What the middle 95% of the draws lie between."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)
