"""Rewards, advantages, whitening and running moments against the published formulas."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from megalm.rlhf.advantages import (
    RunningMoments,
    explained_variance,
    gae,
    group_advantages,
    is_last,
    leave_one_out_advantages,
    masked_sums,
    token_rewards,
    whiten,
)
from tests.rlhf import formulas
from tests.rlhf.tensors import Draw, Shape, shapes

CLOSE = {"rtol": 1e-12, "atol": 1e-12}
finite = st.floats(-1e3, 1e3, allow_nan=False)


def picked(values_BS: Tensor, mask_BS: Tensor) -> list[list[float]]:
    """Each row's values at the tokens of the mask."""
    return [row[at].tolist() for row, at in zip(values_BS, mask_BS, strict=True)]


def assert_rows(found_BS: Tensor, mask_BS: Tensor, wanted: list[list[float]]) -> None:
    """Those values at the mask, and 0 elsewhere."""
    for found, row in zip(picked(found_BS, mask_BS), wanted, strict=True):
        assert found == pytest.approx(row, rel=1e-10, abs=1e-10)
    assert not found_BS[~mask_BS].any()


@given(shape=shapes)
def test_rewards_are_the_penalty_at_each_token_and_the_score_at_the_last(shape: Shape) -> None:
    draw = Draw(shape)
    scores_B, kl_BS = draw.rows(), draw.normal()
    empty_B = ~draw.mask_BS.any(1)
    found_BS = token_rewards(scores_B.masked_fill(empty_B, math.nan), kl_BS, draw.mask_BS, 0.3)
    wanted = []
    for score, row in zip(scores_B.tolist(), picked(kl_BS, draw.mask_BS), strict=True):
        rewards = [-0.3 * kl for kl in row]
        if rewards:
            rewards[-1] += score
        wanted.append(rewards)
    assert_rows(found_BS, draw.mask_BS, wanted)
    assert is_last(draw.mask_BS).sum(1).tolist() == (~empty_B).long().tolist()


@given(shape=shapes, gamma=st.sampled_from([1.0, 0.9]), lam=st.sampled_from([0.0, 0.95, 1.0]))
def test_gae_is_the_sum_of_discounted_errors(shape: Shape, gamma: float, lam: float) -> None:
    """What the values are behind a response's last token plays no part: nothing follows."""
    draw = Draw(shape)
    rewards_BS, values_BS = draw.normal(), draw.normal()
    advantages_BS, returns_BS = gae(rewards_BS, values_BS, draw.mask_BS, gamma, lam)
    wanted, wanted_returns = [], []
    for rewards, values in zip(
        picked(rewards_BS, draw.mask_BS), picked(values_BS, draw.mask_BS), strict=True
    ):
        row = formulas.gae(rewards, values, gamma, lam)
        wanted.append(row)
        wanted_returns.append([a + v for a, v in zip(row, values, strict=True)])
    assert_rows(advantages_BS, draw.mask_BS, wanted)
    assert_rows(returns_BS, draw.mask_BS, wanted_returns)


def test_gae_without_discount_is_what_follows_less_the_value() -> None:
    """With gamma = lam = 1 the returns are the rewards still to come."""
    rewards_BS = torch.tensor([[9.0, 1.0, 2.0, 4.0, 9.0]])
    values_BS = torch.tensor([[9.0, 0.5, 0.25, 3.0, 8.0]])
    _, returns_BS = gae(rewards_BS, values_BS, torch.tensor([[0, 1, 1, 1, 0]]), 1.0, 1.0)
    assert returns_BS.tolist() == [[0, 7, 6, 4, 0]]


@given(shape=shapes, shift_mean=st.booleans())
def test_whitening_is_by_mean_and_unbiased_variance_of_the_mask(shape: Shape, shift_mean: bool) -> None:
    draw = Draw(shape)
    values_BS = draw.normal(3.0)
    tokens = [*itertools.chain(*picked(values_BS, draw.mask_BS))]
    assume(len(tokens) > 1)
    mean, variance = formulas.mean_and_variance(tokens)
    kept = 0.0 if shift_mean else mean
    wanted = [
        [(v - mean) / math.sqrt(variance + 1e-8) + kept for v in row]
        for row in picked(values_BS, draw.mask_BS)
    ]
    assert_rows(whiten(values_BS, draw.mask_BS, shift_mean=shift_mean), draw.mask_BS, wanted)


@given(shape=shapes)
def test_whitening_a_batch_in_parts_equals_the_whole(shape: Shape) -> None:
    """In float32 to the last bit: the sums are of float64, whose order does not show."""
    draw = Draw(shape)
    values_BS, mask_BS = draw.normal().float(), draw.mask_BS
    sums = sum(masked_sums(v[None], m[None]) for v, m in zip(values_BS, mask_BS, strict=True))
    parts = [whiten(v[None], m[None], sums) for v, m in zip(values_BS, mask_BS, strict=True)]
    assert torch.equal(torch.cat(parts), whiten(values_BS, mask_BS))


def test_whitening_a_single_token_or_none_stays_finite() -> None:
    values_BS = torch.tensor([[5.0, 7.0]])
    assert whiten(values_BS, torch.tensor([[0, 1]])).tolist() == [[0, 0]]
    assert whiten(values_BS, torch.tensor([[0, 0]])).tolist() == [[0, 0]]


@pytest.mark.parametrize(("share", "wanted"), [(1.0, 1.0), (0.0, 0.0), (0.5, 0.75), (-1.0, -3.0)])
def test_explained_variance_is_what_the_residual_leaves(share: float, wanted: float) -> None:
    generator = torch.Generator().manual_seed(0)
    returns_BS = torch.randn(4, 50, generator=generator, dtype=torch.float64)
    mask_BS = torch.rand(4, 50, generator=generator) < 0.5
    residual = masked_sums(returns_BS - share * returns_BS, mask_BS)
    assert explained_variance(residual, masked_sums(returns_BS, mask_BS)) == pytest.approx(wanted, abs=1e-12)
    assert explained_variance(residual, masked_sums(torch.ones(4, 50), mask_BS)) == 0.0


@given(groups=st.integers(1, 4), size=st.integers(1, 6), divide=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_group_advantages_are_the_formula(groups: int, size: int, divide: bool, seed: int) -> None:
    scores_B = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, groups * size) / 3)
    found_B, level = group_advantages(scores_B, size, divide)
    wanted, alike = [], 0
    for group in scores_B.view(groups, size).tolist():
        alike += len(set(group)) == 1
        mean = math.fsum(group) / size
        std = math.sqrt(formulas.mean_and_variance(group)[1]) + 1e-4 if divide and size > 1 else 1.0
        wanted += [(score - mean) / std if len(set(group)) > 1 else 0.0 for score in group]
    assert found_B.tolist() == pytest.approx(wanted, abs=1e-12) and level == alike


def test_a_group_of_equal_scores_teaches_nothing_to_the_last_bit() -> None:
    """The mean of three times 0.1 is not 0.1, and its rounding over 1e-4 would be seen."""
    advantages_B, level = group_advantages(torch.tensor([0.1, 0.1, 0.1, 1e9, 1e9, 1e9 + 64]), 3)
    assert advantages_B[:3].tolist() == [0, 0, 0] and level == 1 and advantages_B[3:].all()


@given(groups=st.integers(1, 4), size=st.integers(2, 6), seed=st.integers(0, 2**32 - 1))
def test_leave_one_out_is_against_the_mean_of_the_others(groups: int, size: int, seed: int) -> None:
    scores_B = torch.from_numpy(np.random.default_rng(seed).normal(size=groups * size))
    wanted = []
    for group in scores_B.view(groups, size).tolist():
        for number, score in enumerate(group):
            others = group[:number] + group[number + 1 :]
            wanted.append(score - math.fsum(others) / len(others))
    found_B, level = leave_one_out_advantages(scores_B, size)
    assert found_B.tolist() == pytest.approx(wanted, abs=1e-12) and level == 0


@pytest.mark.parametrize("size", [0, 4])
def test_rows_that_are_no_whole_groups_are_an_error(size: int) -> None:
    with pytest.raises(ValueError, match="no whole groups"):
        group_advantages(torch.ones(6), size)


def test_leave_one_out_of_one_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        leave_one_out_advantages(torch.ones(6), 1)


@given(st.lists(st.lists(finite, max_size=6), max_size=6))
def test_running_moments_of_parts_are_those_of_all(parts: list[list[float]]) -> None:
    values = [*itertools.chain(*parts)]
    assume(len(set(values)) > 1)
    mean, variance = formulas.mean_and_variance(values)
    assume(variance > 1e-6)
    moments, merged = RunningMoments(), RunningMoments()
    for number, part in enumerate(parts):
        moments.update(torch.tensor(part, dtype=torch.float64))
        other = RunningMoments()
        other.update(torch.tensor(part, dtype=torch.float64))
        merged.merge(other)
        if number == len(parts) // 2:  # a resumed run goes on alike
            again = RunningMoments()
            again.load(moments.state())
            moments = again
    for found in (moments, merged):
        assert found.count == len(values)
        assert found.mean == pytest.approx(mean, rel=1e-9, abs=1e-9)
        assert found.std == pytest.approx(math.sqrt(variance), rel=1e-6)


def test_running_moments_hold_far_from_zero() -> None:
    """Where a sum of squares in float64 would have no digits of the variance left."""
    moments = RunningMoments()
    for value in (1e9 + 4, 1e9 + 7, 1e9 + 13, 1e9 + 16):
        moments.update(torch.tensor([value], dtype=torch.float64))
    assert moments.std == pytest.approx(math.sqrt(30), rel=1e-9)
    scores_B = torch.tensor([1e9 + 10 + math.sqrt(30)], dtype=torch.float64)
    assert float(moments.normalise(scores_B)) == pytest.approx(1.0, rel=1e-6)
    assert float(moments.normalise(scores_B, shift_mean=False)) == pytest.approx(
        1e9 / math.sqrt(30), rel=1e-6
    )


@pytest.mark.parametrize("count", [3, 24, 768])
def test_equal_values_are_normalised_to_nothing(count: int) -> None:
    """Rounding alone sets their mean apart from them, and must not be taken for a deviation."""
    moments, values_B = RunningMoments(), torch.full((count,), 0.1, dtype=torch.float64)
    for _ in range(3):
        moments.update(values_B)
    assert float(moments.normalise(values_B).abs().max()) < 1e-15


def test_normalising_before_there_is_a_variance_divides_by_one() -> None:
    moments = RunningMoments()
    moments.update(torch.tensor([3.0]))
    assert moments.normalise(torch.tensor([5.0])).tolist() == [2.0]
