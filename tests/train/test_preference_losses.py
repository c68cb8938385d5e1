"""Losses of preferences equal the published formulas in NumPy, values and gradients."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from megalm.train.preference_losses import bradley_terry, dpo, ipo, kto, kto_baseline, squared_error

Array = NDArray[np.float64]
PAIRS = 7


def sigmoid(x: float) -> float:
    return 1 / (1 + float(np.exp(-x)))


def drawn(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).normal(0, 3, shape)


def written_out(formula: Callable[..., float]) -> Callable[..., Array]:
    """The formula of one pair or answer, taken for each by itself."""
    return lambda *columns: np.array([formula(*row) for row in zip(*columns, strict=True)])


def slope(function: Callable[[Array], Array], x: Array, step: float = 1e-6) -> Array:
    """Derivative of the sum of `function` by each entry of x, by central differences."""
    found = np.empty_like(x)
    for place in np.ndindex(x.shape):
        moved = []
        for way in (step, -step):
            y = x.copy()
            y[place] += way
            moved.append(function(y).sum())
        found[place] = (moved[0] - moved[1]) / (2 * step)
    return found


def assert_same(ours: Callable[[Tensor], Tensor], expected: Callable[[Array], Array], x: Array) -> None:
    """Each entry and the gradient of the sum."""
    leaf = torch.tensor(x, requires_grad=True)
    loss = ours(leaf)
    np.testing.assert_allclose(loss.detach().numpy(), expected(x), rtol=1e-12, atol=1e-15)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    np.testing.assert_allclose(gradient.numpy(), slope(expected, x), rtol=1e-6, atol=1e-8)


def test_bradley_terry_with_margin_and_centering() -> None:
    margin_P = np.abs(drawn(1, PAIRS))
    for center in (0.0, 0.3):
        formula = written_out(lambda c, r, m: -np.log(sigmoid(c - r - m)) + center * (c + r) ** 2)  # noqa: B023
        assert_same(
            lambda x: bradley_terry(x[0], x[1], torch.tensor(margin_P), center),  # noqa: B023
            lambda x: formula(x[0], x[1], margin_P),  # noqa: B023
            drawn(0, 2, PAIRS),
        )


def test_squared_error_of_ratings() -> None:
    ratings_B = drawn(1, PAIRS)
    assert_same(
        lambda x: squared_error(x, torch.tensor(ratings_B)), lambda x: (x - ratings_B) ** 2, drawn(0, PAIRS)
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo(smoothing: float) -> None:
    def formula(c: float, r: float) -> float:
        margin = 0.3 * (c - r)
        return -(1 - smoothing) * np.log(sigmoid(margin)) - smoothing * np.log(sigmoid(-margin))

    assert_same(
        lambda x: dpo(x[0], x[1], 0.3, smoothing), lambda x: written_out(formula)(*x), drawn(0, 2, PAIRS)
    )


def test_ipo() -> None:
    formula = written_out(lambda c, r: (c - r - 1 / (2 * 0.3)) ** 2)
    assert_same(lambda x: ipo(x[0], x[1], 0.3), lambda x: formula(*x), drawn(0, 2, PAIRS))


def test_kto_of_wanted_and_unwanted_answers() -> None:
    wanted_B, baseline = np.arange(PAIRS) % 2 == 0, 0.7

    def formula(ratio: float, wanted: bool) -> float:
        if wanted:
            return 1.5 * (1 - sigmoid(0.3 * (ratio - baseline)))
        return 0.7 * (1 - sigmoid(0.3 * (baseline - ratio)))

    assert_same(
        lambda x: kto(x, torch.tensor(wanted_B), torch.tensor(baseline, dtype=torch.float64), 0.3, 1.5, 0.7),
        lambda x: written_out(formula)(x, wanted_B),
        drawn(0, PAIRS),
    )


def test_kto_s_baseline_is_a_mean_that_is_not_negative() -> None:
    pairs = {(3.0, 2.0): 1.5, (-3.0, 2.0): 0.0, (0.0, 0.0): 0.0}
    for sums, expected in pairs.items():
        assert float(kto_baseline(*map(torch.tensor, sums))) == expected


def test_far_away_rewards_have_finite_losses_and_gradients() -> None:
    far = torch.tensor([[-1e4, 1e4], [1e4, -1e4]], requires_grad=True)
    for loss in (bradley_terry(far[0], far[1], torch.zeros(2)), dpo(far[0], far[1], 1.0, 0.1)):
        (gradient,) = torch.autograd.grad(loss.sum(), far)
        assert loss.isfinite().all() and gradient.isfinite().all()
