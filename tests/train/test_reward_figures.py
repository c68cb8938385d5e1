"""Figures of rewards from sums equal those computed from all pairs at once by numpy and scipy."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, pearsonr

from megalm.train.reward_figures import BINS, pair_figures, pair_sums, rating_figures, rating_sums, wilson


def test_pairs() -> None:
    random = np.random.default_rng(0)
    rewards_P2 = random.normal([0.5, 0], size=(200, 2))
    lengths_P2 = random.integers(1, 9, (200, 2))
    rewards_P2[3, 1] = rewards_P2[3, 0]
    halves = [(rewards_P2[:70], lengths_P2[:70]), (rewards_P2[70:], lengths_P2[70:])]
    sums = sum(pair_sums(torch.tensor(r), torch.tensor(n)).numpy() for r, n in halves)
    found = pair_figures(sums)  # type: ignore[arg-type]
    margin, longer = rewards_P2 @ [1, -1], lengths_P2 @ [1, -1]
    right = np.where(margin == 0, 0.5, margin > 0)
    assert found["pairs"] == 200
    assert found["accuracy"] == pytest.approx(right.mean())
    assert found["margin"] == pytest.approx(margin.mean())
    assert found["length_accuracy"] == pytest.approx((longer > 0).sum() / (longer != 0).sum())
    assert found["length_correlation"] == pytest.approx(pearsonr(margin, longer).statistic)
    assert found["accuracy_chosen_shorter"] == pytest.approx(right[longer < 0].mean())
    assert found["chosen_shorter"] == (longer < 0).sum()
    assert found["reward_mean"] == pytest.approx(rewards_P2.mean())
    assert found["reward_std"] == pytest.approx(rewards_P2.std())
    sure = 1 / (1 + np.exp(-np.abs(margin)))
    error = 0.0
    for number in range(BINS):
        low = 0.5 + number / (2 * BINS)
        inside = (sure >= low) & (sure < low + 1 / (2 * BINS))
        assert found["bins"][number][0] == inside.sum()
        if inside.any():
            error += inside.mean() * abs(sure[inside].mean() - right[inside].mean())
    assert found["calibration_error"] == pytest.approx(error)


def test_ratings() -> None:
    random = np.random.default_rng(0)
    ratings = random.integers(1, 6, 80).astype(float)
    rewards = ratings + random.normal(size=80)
    found = rating_figures(rating_sums(torch.tensor(rewards), torch.tensor(ratings)).numpy())
    assert found["rmse"] == pytest.approx(np.sqrt(((rewards - ratings) ** 2).mean()))
    assert found["correlation"] == pytest.approx(pearsonr(rewards, ratings).statistic)
    assert found["explained_variance"] == pytest.approx(1 - ((rewards - ratings) ** 2).mean() / ratings.var())
    flat = rating_figures(rating_sums(torch.ones(3), torch.ones(3)).numpy())
    assert flat["correlation"] == 0 and flat["reward_std"] == 0


def test_wilson_interval() -> None:
    for right, count in ((3, 10), (90, 100), (0, 5)):
        interval = binomtest(right, count).proportion_ci(method="wilson")
        assert wilson(right, count) == pytest.approx((interval.low, interval.high), abs=1e-9)
