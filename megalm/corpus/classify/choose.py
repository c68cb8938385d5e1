"""Chooses the penalty and the thresholds of a classifier by cross-validation."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megalm.corpus.classify.matrix import Matrix
from megalm.corpus.classify.metrics import best_f1_threshold, precision_threshold, share_threshold
from megalm.corpus.classify.solver import Fit, fit_logistic, probabilities
from megalm.errors import UserError

Scores = NDArray[np.float64]


class TrainingData(NamedTuple):
    """The features of documents (rows R) and the number of each one's label."""

    matrix: Matrix
    truth_R: NDArray[np.int64]
    names: Sequence[str]

    def fit(
        self, c: float, balance: bool, left_out_R: NDArray[np.bool_] | None = None, start: Fit | None = None
    ) -> Fit:
        """Train on all rows but those left out; `balance` lets every label weigh the same in total."""
        weights_R = np.ones(len(self.truth_R)) if left_out_R is None else (~left_out_R).astype(np.float64)
        if balance:
            counts = np.bincount(self.truth_R, weights_R, len(self.names))
            weights_R *= (weights_R.sum() / (len(self.names) * counts))[self.truth_R]
        return fit_logistic(self.matrix, self.truth_R, weights_R, len(self.names), c, start=start)


def cross_validate(
    data: TrainingData,
    folds_R: NDArray[np.int64],
    cs: Sequence[float],
    balance: bool,
    advance: Callable[[int], Any],
) -> tuple[float, Scores]:
    """The one of `cs` with the least log loss on rows left out, and every row's probabilities by a model without its fold.

    Returns it and [rows, labels].
    """
    folds = range(int(folds_R.max()) + 1)
    starts: list[Fit | None] = [None for _ in folds]
    tried: list[tuple[float, float, Scores]] = []
    for c in sorted(cs):
        scores_RL = np.empty((len(folds_R), len(data.names)))
        for fold in folds:
            own_R = folds_R == fold
            starts[fold] = fit = data.fit(c, balance, own_R, starts[fold])
            scores_RL[own_R] = probabilities(fit.logits(data.matrix))[own_R]
            advance(1)
        tried.append((log_loss(data.truth_R, scores_RL), c, scores_RL))
    _, best, scores_RL = min(tried, key=lambda entry: entry[:2])
    return best, scores_RL


def log_loss(truth_R: NDArray[np.int64], scores_RL: Scores) -> float:
    """The mean of -ln of the true label's probability."""
    right_R = scores_RL[np.arange(len(truth_R)), truth_R]
    return float(-np.log(np.maximum(right_R, np.finfo(np.float64).tiny)).mean())


def choose_thresholds(
    data: TrainingData, scores_RL: Scores, fixed: float | None, precision: float | None, share: float | None
) -> dict[str, float]:
    """For each label the score from which on a document counts as such: as asked for, else the one with the best F1.

    Of two labels the second one's is chosen, and the other's is 1 minus it. `precision` and `share` are for two labels;
    else UserError.
    """
    names = list(data.names)
    if len(names) > 2:
        if precision is not None or share is not None:
            raise UserError(
                f"a threshold by precision or share is for two labels, there are {len(names)}; say which are positive"
            )
        return {
            name: best_f1_threshold(data.truth_R == number, scores_RL[:, number]) if fixed is None else fixed
            for number, name in enumerate(names)
        }
    truth_R, scores_R = data.truth_R == 1, scores_RL[:, 1]
    if fixed is not None:
        chosen = fixed
    elif precision is not None:
        chosen = precision_threshold(truth_R, scores_R, precision)
    elif share is not None:
        chosen = share_threshold(scores_R, share)
    else:
        chosen = best_f1_threshold(truth_R, scores_R)
    return {names[0]: 1 - chosen, names[1]: chosen}
