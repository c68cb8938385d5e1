"""Measures of a classifier on labelled documents, and the choice of a threshold."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megalm.errors import UserError

Flags = NDArray[np.bool_]
Scores = NDArray[np.float64]

_DECIMALS = 6


def measure(
    truth_R: NDArray[np.int64], scores_RL: Scores, labels: Sequence[str], threshold: float
) -> dict[str, Any]:
    """Measures of the probabilities `scores_RL`, [rows, labels], against the true labels.

    Two labels: precision, recall and F1 of the second one, called where its score reaches `threshold`. More: of each label,
    called where it is the most probable, and their means. auc is the area under the ROC curve; of more than two labels the
    mean of each against the rest.
    """
    if len(labels) == 2:
        found = two_labels(truth_R == 1, scores_RL[:, 1], threshold)
        return {"documents": len(truth_R), "threshold": threshold, **found}
    called_R = scores_RL.argmax(1)
    each = {}
    for number, label in enumerate(labels):
        truth = truth_R == number
        each[label] = {**_rates(truth, called_R == number), "auc": _rounded(auc(truth, scores_RL[:, number]))}
    return {
        "documents": len(truth_R),
        "accuracy": _rounded((called_R == truth_R).mean()),
        "macro_f1": _rounded(np.mean([rates["f1"] for rates in each.values()])),
        "auc": _rounded(np.mean([rates["auc"] for rates in each.values()])),
        "labels": each,
    }


def two_labels(truth_R: Flags, scores_R: Scores, threshold: float) -> dict[str, float]:
    """Precision, recall and F1 of the documents that reach `threshold`, accuracy, and the area under the ROC curve."""
    called_R = scores_R >= threshold
    return {
        **_rates(truth_R, called_R),
        "accuracy": _rounded((called_R == truth_R).mean()),
        "auc": _rounded(auc(truth_R, scores_R)),
    }


def auc(truth_R: Flags, scores_R: Scores) -> float:
    """The chance that a random positive scores higher than a random negative, ties counting half (Mann and Whitney 1947)."""
    _, places, counts = np.unique(scores_R, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    positives = int(truth_R.sum())
    negatives = len(truth_R) - positives
    return float((ranks[truth_R].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def best_f1_threshold(truth_R: Flags, scores_R: Scores) -> float:
    """The threshold with the greatest F1."""
    thresholds, called, right = _curve(truth_R, scores_R)
    return float(thresholds[np.argmax(2 * right / (called + truth_R.sum()))])


def precision_threshold(truth_R: Flags, scores_R: Scores, precision: float) -> float:
    """The lowest threshold with this precision at least; UserError where there is none."""
    thresholds, called, right = _curve(truth_R, scores_R)
    reached = np.flatnonzero(right >= precision * called)
    if not len(reached):
        raise UserError(
            f"no threshold has a precision of {precision}; the best is {(right / called).max():.3f}; ask for less"
        )
    return float(thresholds[reached[-1]])


def share_threshold(scores_R: Scores, share: float) -> float:
    """The threshold that about this share of the documents reaches."""
    thresholds, called, _ = _curve(np.ones(len(scores_R), bool), scores_R)
    return float(thresholds[np.argmin(np.abs(called - share * len(scores_R)))])


def _curve(truth_R: Flags, scores_R: Scores) -> tuple[Scores, NDArray[np.int64], NDArray[np.int64]]:
    """Thresholds between scores that differ, falling, and how many documents each calls, and of these rightly."""
    order = np.argsort(-scores_R, kind="stable")
    scores = scores_R[order]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
    below = np.append(scores[1:], 0.0)[last]
    return (
        (scores[last] + below) / 2,
        (last + 1).astype(np.int64),
        np.cumsum(truth_R[order], dtype=np.int64)[last],
    )


def precision_recall_f1(right: Any, called: Any, positives: Any) -> tuple[Any, Any, Any]:
    """Precision, recall and F1 from counts (numbers or arrays): called rightly, called, true; 0 where nothing divides."""
    right, called, positives = (np.asarray(counts, np.float64) for counts in (right, called, positives))
    parts = ((right, called), (right, positives), (2 * right, called + positives))
    precision, recall, f1 = (count / np.maximum(total, 1) for count, total in parts)
    return precision, recall, f1


def _rates(truth_R: Flags, called_R: Flags) -> dict[str, float]:
    positives = int(truth_R.sum())
    rates = precision_recall_f1((truth_R & called_R).sum(), called_R.sum(), positives)
    named = zip(("precision", "recall", "f1"), map(_rounded, rates), strict=True)
    return {"positives": positives, **dict(named)}


def _rounded(value: Any) -> float:
    return round(float(value), _DECIMALS)
