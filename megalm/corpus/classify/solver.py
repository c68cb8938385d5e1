"""Logistic regression on a sparse matrix: the one minimum of a convex function, found by L-BFGS."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megalm.corpus.classify.matrix import Matrix

Vector = NDArray[np.float64]
Objective = Callable[[Vector], tuple[float, Vector]]

_MEMORY = 10  # pairs of steps and changes of gradient that stand for the curvature
_SUFFICIENT = 1e-4  # Armijo's condition: the share of the predicted decrease that a step must reach


class Fit(NamedTuple):
    """Weights of a logistic regression; F features, L logits: one for two labels, else one a label."""

    weights_LF: Vector
    bias_L: Vector
    iterations: int
    converged: bool

    def logits(self, matrix: Matrix) -> Vector:
        """The logits of each row, [rows, L]."""
        return matrix.times(self.weights_LF) + self.bias_L


def fit_logistic(
    matrix: Matrix,
    labels: NDArray[np.int64],
    weights: Vector,
    count: int,
    c: float,
    tolerance: float = 1e-5,
    max_iterations: int = 1000,
    start: Fit | None = None,
) -> Fit:
    """Minimise the weighted log loss plus |w|^2 / (2 c); the bias is free.

    labels: 0 to `count` - 1 for each row; weights: how much each row counts, 0 to leave it out. Two labels share one
    logit, more have one each (multinomial). The same function as scikit-learn's LogisticRegression with C = `c`, divided
    by c times the sum of `weights`; it ends where no derivative exceeds `tolerance`.
    """
    outputs = 1 if count == 2 else count
    penalty = 1 / (c * weights.sum())
    features = matrix.columns

    def objective(point: Vector) -> tuple[float, Vector]:
        weights_LF, bias_L = _parts(point, outputs, features)
        loss, slope_RL = _log_loss(matrix.times(weights_LF) + bias_L, labels, weights)
        gradient = matrix.transposed_times(slope_RL) + penalty * weights_LF
        value = loss + penalty / 2 * float(_inner(weights_LF, weights_LF))
        return value, np.concatenate([gradient.ravel(), slope_RL.sum(0)])

    first = np.zeros(outputs * (features + 1))
    if start is not None:
        first = np.concatenate([start.weights_LF.ravel(), start.bias_L])
    point, iterations, converged = minimise(objective, first, tolerance, max_iterations)
    return Fit(*_parts(point, outputs, features), iterations, converged)


def probabilities(logits_RL: Vector) -> Vector:
    """The probability of each label, [rows, labels], from one logit a row (two labels) or one a label."""
    return np.exp(_log_probabilities(logits_RL))


def minimise(
    objective: Objective, point: Vector, tolerance: float, max_iterations: int
) -> tuple[Vector, int, bool]:
    """L-BFGS (Nocedal and Wright 2006, algorithm 7.5) with steps that are shortened until they descend enough.

    Returns the point, the number of steps, and whether the largest derivative came down to `tolerance`. For convex
    functions. No library for linear algebra is called, whose sums may depend on the number of threads.
    """
    pairs: list[tuple[Vector, Vector, float]] = []
    value, gradient = objective(point)
    for iteration in range(max_iterations):
        if np.abs(gradient).max() <= tolerance:
            return point, iteration, True
        direction = _direction(gradient, pairs)
        slope = float(_inner(direction, gradient))
        length = 1.0 if pairs else min(1.0, 1 / float(np.abs(gradient).sum()))
        while True:
            next_value, next_gradient = objective(point + length * direction)
            if next_value <= value + _SUFFICIENT * length * slope:
                break
            if length < 1e-10:  # the value no longer changes in double precision
                return point, iteration, False
            length /= 2
        step, change = length * direction, next_gradient - gradient
        if (curvature := float(_inner(step, change))) > 0:
            pairs = [*pairs[-_MEMORY + 1 :], (step, change, curvature)]
        point, value, gradient = point + step, next_value, next_gradient
    return point, max_iterations, bool(np.abs(gradient).max() <= tolerance)


def _direction(gradient: Vector, pairs: list[tuple[Vector, Vector, float]]) -> Vector:
    """Minus the gradient times the approximate inverse of the second derivatives (two loops)."""
    direction = -gradient
    factors = []
    for step, change, curvature in reversed(pairs):
        factors.append(_inner(step, direction) / curvature)
        direction -= factors[-1] * change
    if pairs:
        _, change, curvature = pairs[-1]
        direction *= curvature / _inner(change, change)
    for (step, change, curvature), factor in zip(pairs, reversed(factors), strict=True):
        direction += (factor - _inner(change, direction) / curvature) * step
    return direction


def _log_loss(logits_RL: Vector, labels: NDArray[np.int64], weights: Vector) -> tuple[float, Vector]:
    """The weighted mean of the log losses and its derivative by each logit."""
    logs = _log_probabilities(logits_RL)
    rows = np.arange(len(labels))
    share = weights / weights.sum()
    slope = np.exp(logs)
    slope[rows, labels] -= 1
    slope *= share[:, None]
    return -float((share * logs[rows, labels]).sum()), slope[:, -logits_RL.shape[1] :]


def _log_probabilities(logits_RL: Vector) -> Vector:
    if logits_RL.shape[1] == 1:  # the first label's logit is 0
        logits_RL = np.concatenate([np.zeros_like(logits_RL), logits_RL], axis=1)
    shifted = logits_RL - logits_RL.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _parts(point: Vector, outputs: int, features: int) -> tuple[Vector, Vector]:
    return point[: outputs * features].reshape(outputs, features), point[outputs * features :]


def _inner(first: Vector, second: Vector) -> Vector:
    return (first * second).sum()
