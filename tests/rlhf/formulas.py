"""The published formulas of reinforcement learning as plain loops in float64, with their derivatives by hand."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def kl(logprob: float, reference: float, estimator: str) -> tuple[float, float]:
    """(Estimate, its derivative by the log-probability)."""
    ratio = math.exp(reference) / math.exp(logprob)
    return {
        "k1": (-math.log(ratio), 1.0),
        "k2": (math.log(ratio) ** 2 / 2, -math.log(ratio)),
        "k3": (ratio - 1 - math.log(ratio), 1 - ratio),
    }[estimator]


def gae(rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float) -> list[float]:
    """Advantages of one response by the definition: the sum over l of (gamma lam)^l delta_t+l."""
    following = [*values[1:], 0.0][: len(values)]
    deltas = [r + gamma * n - v for r, v, n in zip(rewards, values, following, strict=True)]
    return [
        sum((gamma * lam) ** (j - t) * deltas[j] for j in range(t, len(deltas))) for t in range(len(deltas))
    ]


def ratios(logprobs: Array, old: Array, mask: NDArray[np.bool_], level: str) -> list[list[float]]:
    """Of each token, or the same for all of a response: (p(response) / p_old(response)) ^ (1 / its length)."""
    found = []
    for b in range(len(mask)):
        row = [math.exp(logprobs[b, t]) / math.exp(old[b, t]) for t in range(mask.shape[1]) if mask[b, t]]
        if level == "sequence" and row:
            row = [math.prod(row) ** (1 / len(row))] * len(row)
        found.append(row)
    return found


def clipped_objective(
    ratio: float, advantage: float, low: float, high: float, dual: float | None
) -> tuple[float, float]:
    """(The objective of one ratio, its derivative by the ratio)."""
    bounded = min(max(ratio, 1 - low), 1 + high)
    if bounded * advantage < ratio * advantage:
        return bounded * advantage, 0.0
    if dual is not None and advantage < 0 and ratio > dual:
        return dual * advantage, 0.0
    return ratio * advantage, advantage


def policy(
    logprobs: Array,
    old: Array,
    advantages: Array,
    mask: NDArray[np.bool_],
    low: float,
    high: float,
    dual: float | None,
    level: str,
    aggregation: str,
    length: int,
) -> tuple[float, Array]:
    """(The loss of a whole batch, its derivative by each log-probability)."""
    loss, gradient = 0.0, np.zeros_like(logprobs)
    whole = ratios(logprobs, old, mask, level)
    tokens, responses = int(mask.sum()), sum(bool(row) for row in whole)
    for b, row in enumerate(whole):
        places = np.flatnonzero(mask[b]).tolist()
        for t, ratio in zip(places, row, strict=True):
            share = {
                "token_mean": 1 / tokens,
                "sequence_mean": 1 / (responses * len(row)),
                "constant_length": 1 / (responses * length),
            }[aggregation]
            value, slope = clipped_objective(ratio, advantages[b, t], low, high, dual)
            loss -= share * value
            if level == "token":
                gradient[b, t] -= share * slope * ratio
            else:  # each token's log-probability has its part in the ratio of all
                for other in places:
                    gradient[b, other] -= share * slope * ratio / len(row)
    return loss, gradient


def value(
    values: Array, old: Array, returns: Array, mask: NDArray[np.bool_], clip: float | None
) -> tuple[float, Array]:
    """(The sum over tokens, its derivative by each value)."""
    loss, gradient = 0.0, np.zeros_like(values)
    for b, t in zip(*np.nonzero(mask), strict=True):
        distance, slope = values[b, t] - returns[b, t], 1.0
        if clip is not None:
            inside = abs(values[b, t] - old[b, t]) <= clip
            near = old[b, t] + min(max(values[b, t] - old[b, t], -clip), clip) - returns[b, t]
            if near**2 > distance**2:
                distance, slope = near, float(inside)
        loss += distance**2 / 2
        gradient[b, t] = distance * slope
    return loss, gradient


def mean_and_variance(values: Sequence[float]) -> tuple[float, float]:
    """Unbiased."""
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
