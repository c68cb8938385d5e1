"""How good rewards are on held-out preferences: sums over microbatches and ranks, and what they come to."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BINS = 10
_PAIR_SUMS = (
    "pairs",
    "right",
    "margin",
    "margin2",
    "longer",  # pairs whose chosen answer is longer
    "shorter",
    "right_shorter",
    "length",  # difference of lengths
    "length2",
    "margin_length",
    "reward",
    "reward2",
)
_RATING_SUMS = ("answers", "reward", "reward2", "rating", "rating2", "reward_rating")
PAIR_SIZE = len(_PAIR_SUMS) + 3 * BINS
RATING_SIZE = len(_RATING_SUMS)


def pair_sums(rewards_P2: Tensor, lengths_P2: Tensor) -> Tensor:
    """What `pair_figures` needs of pairs, chosen before rejected, float64 (PAIR_SIZE)."""
    rewards_P2, lengths_P2 = rewards_P2.double(), lengths_P2.double()
    margin_P = rewards_P2[:, 0] - rewards_P2[:, 1]
    length_P = lengths_P2[:, 0] - lengths_P2[:, 1]
    right_P = (margin_P > 0).double() + 0.5 * (margin_P == 0)
    sums = {
        "pairs": torch.ones_like(margin_P),
        "right": right_P,
        "margin": margin_P,
        "margin2": margin_P.square(),
        "longer": (length_P > 0).double(),
        "shorter": (length_P < 0).double(),
        "right_shorter": right_P * (length_P < 0),
        "length": length_P,
        "length2": length_P.square(),
        "margin_length": margin_P * length_P,
        "reward": rewards_P2.sum(1),
        "reward2": rewards_P2.square().sum(1),
    }
    # the model is as sure of the one answer as it says of the other's being worse: bins of [0.5, 1]
    sure_P = torch.sigmoid(margin_P.abs())
    bin_P = ((sure_P - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    empty = sure_P.new_zeros(BINS)
    bins = [empty.index_add(0, bin_P, x_P) for x_P in (torch.ones_like(sure_P), sure_P, right_P)]
    return torch.cat([torch.stack([sums[name].sum() for name in _PAIR_SUMS]), *bins])


def pair_figures(sums: NDArray[np.float64]) -> dict[str, Any]:
    """Figures of what `pair_sums` gave, summed over all pairs.

    accuracy: of pairs whose chosen answer has the larger reward, equal ones by half; with its 95% interval (Wilson 1927).
    calibration_error: expected calibration error (arXiv:1706.04599, equation 3) of the probability sigmoid(|difference|) of
    the answer that is preferred. length_accuracy: of "the longer one". length_correlation: Pearson's, of the differences of
    rewards and of lengths. accuracy_chosen_shorter: where the shorter answer was chosen. bins: pairs, mean probability and
    accuracy of each.
    """
    found = dict(zip(_PAIR_SUMS, sums[: len(_PAIR_SUMS)].tolist(), strict=True))
    count_K, sure_K, right_K = sums[len(_PAIR_SUMS) :].reshape(3, BINS)
    pairs, shorter = found["pairs"], found["shorter"]
    unequal = found["longer"] + shorter
    low, high = wilson(found["right"], pairs)
    full_K = np.maximum(count_K, 1)
    mean, std = _mean_std(found["reward"], found["reward2"], 2 * pairs)
    return {
        "pairs": round(pairs),
        "accuracy": found["right"] / pairs,
        "accuracy_low": low,
        "accuracy_high": high,
        "margin": found["margin"] / pairs,
        "calibration_error": float(np.abs(sure_K - right_K).sum() / pairs),
        "length_accuracy": found["longer"] / max(unequal, 1),
        "length_correlation": _correlation(
            pairs,
            found["margin"],
            found["margin2"],
            found["length"],
            found["length2"],
            found["margin_length"],
        ),
        "chosen_shorter": round(shorter),
        "accuracy_chosen_shorter": found["right_shorter"] / max(shorter, 1),
        "reward_mean": mean,
        "reward_std": std,
        "bins": np.stack([count_K, sure_K / full_K, right_K / full_K], 1).tolist(),
    }


def rating_sums(rewards_B: Tensor, ratings_B: Tensor) -> Tensor:
    """What `rating_figures` needs of answers, float64 (RATING_SIZE)."""
    rewards_B, ratings_B = rewards_B.double(), ratings_B.double()
    sums = {
        "answers": torch.ones_like(rewards_B),
        "reward": rewards_B,
        "reward2": rewards_B.square(),
        "rating": ratings_B,
        "rating2": ratings_B.square(),
        "reward_rating": rewards_B * ratings_B,
    }
    return torch.stack([sums[name].sum() for name in _RATING_SUMS])


def rating_figures(sums: NDArray[np.float64]) -> dict[str, Any]:
    """Root of the mean squared error, Pearson's correlation, the share of the ratings' variance that is explained, and moments."""
    found = dict(zip(_RATING_SUMS, sums.tolist(), strict=True))
    answers = found["answers"]
    squared = found["reward2"] - 2 * found["reward_rating"] + found["rating2"]
    mean, std = _mean_std(found["reward"], found["reward2"], answers)
    _, rating_std = _mean_std(found["rating"], found["rating2"], answers)
    return {
        "answers": round(answers),
        "rmse": math.sqrt(max(squared, 0.0) / answers),
        "explained_variance": 1 - squared / answers / rating_std**2 if rating_std else 0.0,
        "correlation": _correlation(
            answers,
            found["reward"],
            found["reward2"],
            found["rating"],
            found["rating2"],
            found["reward_rating"],
        ),
        "reward_mean": mean,
        "reward_std": std,
    }


def wilson(right: float, count: float) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927)."""
    z, share = 1.959963984540054, right / count
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (middle - half) / (1 + z * z / count), (middle + half) / (1 + z * z / count)


def _mean_std(total: float, squares: float, count: float) -> tuple[float, float]:
    mean = total / count
    return mean, math.sqrt(max(squares / count - mean * mean, 0.0))


def _correlation(count: float, x: float, x2: float, y: float, y2: float, xy: float) -> float:
    """Pearson's from sums; 0 where one of the two does not vary."""
    spread = (x2 - x * x / count) * (y2 - y * y / count)
    return (xy - x * y / count) / math.sqrt(spread) if spread > 0 else 0.0
