"""Policy and value losses, their gradients and figures against the published formulas."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from megalm.rlhf.kl import KLEstimator
from megalm.rlhf.losses import (
    Clip,
    kl_loss,
    log_ratio,
    policy_figures,
    policy_loss,
    token_weights,
    value_loss,
)
from tests.rlhf import formulas
from tests.rlhf.tensors import Draw, Shape, shapes

CLOSE = {"rtol": 1e-11, "atol": 1e-12}
AGGREGATIONS = ("token_mean", "sequence_mean", "constant_length")
LENGTH = 12
clips = st.builds(
    Clip,
    low=st.sampled_from([0.2, 0.1]),
    high=st.sampled_from([0.2, 0.28]),
    dual=st.sampled_from([None, 1.5, 3.0]),
    level=st.sampled_from(["token", "sequence"]),
)


def drawn(shape: Shape) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(Log-probabilities with gradient, old ones, advantages, mask)."""
    draw = Draw(shape)
    old_BS = draw.logprobs()
    return draw.logprobs(old_BS).requires_grad_(), old_BS, draw.normal(), draw.mask_BS


def aggregated(loss_BS: Tensor, mask_BS: Tensor, aggregation: str) -> Tensor:
    weights_BS, divisor = token_weights(mask_BS.double(), aggregation, LENGTH)  # type: ignore[arg-type]
    return (loss_BS * weights_BS).sum() / divisor


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(shape=shapes, clip=clips)
def test_policy_loss_and_gradient_are_the_formulas(aggregation: str, shape: Shape, clip: Clip) -> None:
    logprobs_BS, old_BS, advantages_BS, mask_BS = drawn(shape)
    assume(bool(mask_BS.any()))
    loss = aggregated(policy_loss(logprobs_BS, old_BS, advantages_BS, mask_BS, clip), mask_BS, aggregation)
    (gradient_BS,) = torch.autograd.grad(loss, logprobs_BS)
    arrays = (x.detach().numpy() for x in (logprobs_BS, old_BS, advantages_BS, mask_BS))
    bounds = clip.low, clip.high, clip.dual, clip.level
    wanted, wanted_gradient = formulas.policy(*arrays, *bounds, aggregation, LENGTH)
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-11, abs=1e-12)
    torch.testing.assert_close(gradient_BS, torch.from_numpy(wanted_gradient), **CLOSE)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@given(shape=shapes)
def test_a_batch_in_parts_has_the_loss_of_the_whole(aggregation: str, shape: Shape) -> None:
    """Sums and divisors of rows add up, so that no layout or microbatch plays a part."""
    logprobs_BS, old_BS, advantages_BS, mask_BS = drawn(shape)
    assume(bool(mask_BS.any()))
    tensors = logprobs_BS.detach(), old_BS, advantages_BS, mask_BS
    whole = aggregated(policy_loss(*tensors, Clip()), mask_BS, aggregation)
    total, divisor = 0.0, 0.0
    for row in zip(*tensors, strict=True):
        parts = [part[None] for part in row]
        weights_BS, share = token_weights(parts[3].double(), aggregation, LENGTH)  # type: ignore[arg-type]
        total += float((policy_loss(*parts, Clip()) * weights_BS).sum())
        divisor += float(share)
    assert total / divisor == pytest.approx(float(whole), rel=1e-12, abs=1e-14)


@given(shape=shapes, level=st.sampled_from(["token", "sequence"]))
def test_before_the_first_update_the_gradient_is_the_policy_gradient(shape: Shape, level: str) -> None:
    """Ratios are 1: no bound stops anything, and a token's gradient is -advantage, or its response's mean of them."""
    logprobs_BS, _, advantages_BS, mask_BS = drawn(shape)
    clip = Clip(level=level)  # type: ignore[arg-type]
    loss_BS = policy_loss(logprobs_BS, logprobs_BS.detach(), advantages_BS, mask_BS, clip)
    (gradient_BS,) = torch.autograd.grad(loss_BS.sum(), logprobs_BS)
    wanted_BS = -advantages_BS.where(mask_BS, 0.0)
    if level == "sequence":
        mean_B1 = wanted_BS.sum(1, keepdim=True) / mask_BS.sum(1, keepdim=True).clamp(min=1)
        wanted_BS = mean_B1.where(mask_BS, 0.0)
    torch.testing.assert_close(gradient_BS, wanted_BS, **CLOSE)


@pytest.mark.parametrize(("estimator", "weighted"), [("k1", True), ("k3", True), ("k2", False)])
def test_the_gradient_of_a_kl_loss_is_that_of_the_kl(estimator: KLEstimator, weighted: bool) -> None:
    """Over all tokens that the policy may draw, each with its probability, as against the exact divergence."""
    generator = torch.Generator().manual_seed(0)
    logits_V, reference_V = (torch.randn(9, generator=generator, dtype=torch.float64) for _ in range(2))
    logits_V.requires_grad_()
    log_V, reference_V = logits_V.log_softmax(-1), reference_V.log_softmax(-1)
    probability_V = log_V.exp()
    (wanted,) = torch.autograd.grad(
        (probability_V * (log_V - reference_V)).sum(), logits_V, retain_graph=True
    )
    rows_V1 = log_V[:, None], log_V.detach()[:, None], reference_V[:, None], torch.ones(9, 1)
    loss_V1 = kl_loss(*rows_V1, estimator, weighted)
    (found,) = torch.autograd.grad((loss_V1[:, 0] * probability_V.detach()).sum(), logits_V)
    torch.testing.assert_close(found, wanted, **CLOSE)


@given(shape=shapes, clip=clips)
def test_figures_are_counts_and_sums_over_the_mask(shape: Shape, clip: Clip) -> None:
    logprobs_BS, old_BS, advantages_BS, mask_BS = drawn(shape)
    found = policy_figures(logprobs_BS, old_BS, advantages_BS, mask_BS, clip)
    wanted = dict.fromkeys(found, 0.0)
    assert set(wanted) == {"clipped_low", "clipped_high", "ratio", "ratio_squared", "approximate_kl"}
    rows = formulas.ratios(logprobs_BS.detach().numpy(), old_BS.numpy(), mask_BS.numpy(), clip.level)
    for b, row in enumerate(rows):
        for t, ratio in zip(np.flatnonzero(mask_BS[b].numpy()).tolist(), row, strict=True):
            advantage = float(advantages_BS[b, t])
            value, slope = formulas.clipped_objective(ratio, advantage, clip.low, clip.high, None)
            assert (slope == 0) == (value != ratio * advantage)
            wanted["clipped_low"] += slope == 0 and ratio < 1
            wanted["clipped_high"] += slope == 0 and ratio > 1
            wanted["ratio"] += ratio
            wanted["ratio_squared"] += ratio**2
            wanted["approximate_kl"] += formulas.kl(old_BS[b, t].item(), logprobs_BS[b, t].item(), "k3")[0]
    for name, total in found.items():
        assert total.dtype == torch.float64 and not total.requires_grad
        assert float(total) == pytest.approx(wanted[name], rel=1e-11, abs=1e-12), name


@given(shape=shapes, clip=st.sampled_from([None, 0.2, 1.0]))
def test_value_loss_and_gradient_are_the_formulas(shape: Shape, clip: float | None) -> None:
    draw = Draw(shape)
    values_BS, old_BS, returns_BS = draw.normal().requires_grad_(), draw.normal(), draw.normal()
    loss = value_loss(values_BS, old_BS, returns_BS, draw.mask_BS, clip).sum()
    (gradient_BS,) = torch.autograd.grad(loss, values_BS)
    arrays = (x.detach().numpy() for x in (values_BS, old_BS, returns_BS, draw.mask_BS))
    wanted, wanted_gradient = formulas.value(*arrays, clip)
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-11, abs=1e-12)
    torch.testing.assert_close(gradient_BS, torch.from_numpy(wanted_gradient), **CLOSE)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_rows_without_tokens_count_as_nothing(aggregation: str) -> None:
    mask_BS = torch.tensor([[0, 1, 1], [0, 0, 0]])
    weights_BS, divisor = token_weights(mask_BS, aggregation, LENGTH)  # type: ignore[arg-type]
    assert weights_BS.dtype == torch.float32 and not weights_BS[1].any()
    assert float(divisor) == (2 if aggregation == "token_mean" else 1)
    assert token_weights(torch.zeros(2, 3), aggregation, LENGTH)[1] == 0  # type: ignore[arg-type]


def test_unknown_names_and_a_missing_length_are_errors() -> None:
    ones = torch.ones(1, 1)
    with pytest.raises(ValueError, match="'mean'"):
        token_weights(ones, "mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="length"):
        token_weights(ones, "constant_length")
    with pytest.raises(ValueError, match="'word'"):
        log_ratio(ones, ones, ones, "word")  # type: ignore[arg-type]
