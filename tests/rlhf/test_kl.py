"""KL estimators and the coefficient's controller against the published formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given

from megalm.rlhf.kl import KLController, kl_per_token
from tests.rlhf import formulas
from tests.rlhf.tensors import Draw, Shape, shapes

ESTIMATORS = ("k1", "k2", "k3")
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(shape=shapes)
def test_estimators_and_their_gradients_are_the_formulas(estimator: str, shape: Shape) -> None:
    draw = Draw(shape)
    reference_BS = draw.logprobs()
    logprobs_BS = draw.logprobs(reference_BS).requires_grad_()
    found_BS = kl_per_token(logprobs_BS, reference_BS, draw.mask_BS, estimator)
    (gradient_BS,) = torch.autograd.grad(found_BS.sum(), logprobs_BS)
    wanted, slopes = np.zeros(found_BS.shape), np.zeros(found_BS.shape)
    for b, t in zip(*np.nonzero(draw.mask_BS.numpy()), strict=True):
        pair = logprobs_BS[b, t].item(), reference_BS[b, t].item()
        wanted[b, t], slopes[b, t] = formulas.kl(*pair, estimator)
    torch.testing.assert_close(found_BS.detach(), torch.from_numpy(wanted), **CLOSE)
    torch.testing.assert_close(gradient_BS, torch.from_numpy(slopes), **CLOSE)


def test_k1_and_k3_are_unbiased_and_k3_varies_less() -> None:
    """Over draws from the policy both have the mean of the true divergence."""
    generator = torch.Generator().manual_seed(0)
    policy_V, reference_V = (torch.randn(20, generator=generator).double().log_softmax(-1) for _ in range(2))
    reference_V = (0.7 * policy_V + 0.3 * reference_V).log_softmax(-1)
    drawn_1N = torch.multinomial(policy_V.exp(), 200_000, True, generator=generator)[None]
    pair = policy_V[drawn_1N], reference_V[drawn_1N]
    exact = float((policy_V.exp() * (policy_V - reference_V)).sum())
    estimates = {name: kl_per_token(*pair, torch.ones_like(drawn_1N), name) for name in ESTIMATORS}
    for name in ("k1", "k3"):
        error = float(estimates[name].std()) / math.sqrt(drawn_1N.numel())
        assert abs(float(estimates[name].mean()) - exact) < 4 * error
    assert float(estimates["k3"].std()) < float(estimates["k1"].std()) / 2
    assert float(estimates["k3"].min()) >= 0 > float(estimates["k1"].min())


def test_an_unknown_estimator_is_an_error() -> None:
    zeros = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="k4"):
        kl_per_token(zeros, zeros, zeros, "k4")  # type: ignore[arg-type]


def test_fixed_coefficient_stays() -> None:
    controller = KLController(0.1)
    controller.update(100.0, 64)
    assert controller.coefficient == 0.1


@pytest.mark.parametrize(
    ("kl", "wanted"), [(6.6, 0.1 * (1 + 0.1 * 0.5)), (600.0, 0.1 * 1.1), (0.0, 0.1 * 0.9), (6.0, 0.1)]
)
def test_adaptive_coefficient_follows_the_relative_error_within_its_limit(kl: float, wanted: float) -> None:
    controller = KLController(0.1, target=6.0, horizon=1000.0)
    controller.update(kl, 500)
    assert controller.coefficient == pytest.approx(wanted, rel=1e-14)


def test_controller_steers_to_its_target() -> None:
    """A policy whose KL falls as the coefficient rises ends at the target, and a stopped controller goes on alike."""
    controller = KLController(1.0, target=4.0, horizon=500.0)
    again = KLController(9.0, target=4.0, horizon=500.0)
    for step in range(400):
        kl = 1 / controller.coefficient
        if step == 100:
            again.load(controller.state())
        if step >= 100:
            again.update(kl, 64)
        controller.update(kl, 64)
    assert 1 / controller.coefficient == pytest.approx(4.0, rel=1e-3)
    assert again == controller


@pytest.mark.parametrize("values", [(-0.1, 1.0, 1.0), (0.1, 0.0, 1.0), (0.1, 1.0, 0.0)])
def test_a_controller_that_cannot_work_is_an_error(values: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="KL coefficient"):
        KLController(*values)
