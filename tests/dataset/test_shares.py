"""Shares of a blend: exact by weight and by budget, for any number of sources, without memory."""

import tracemalloc

import numpy as np
import pytest

from megalm.dataset import TokenStream
from megalm.dataset.order import _locate_block, locate
from megalm.dataset.shares import BLOCK, Budget, Counts, Quotas, by_budget, by_weight
from megalm.errors import UserError

SOURCES = 120


def uneven_counts() -> tuple[int, ...]:
    """From one sample to 30,000, in no order; 137,000 or so in all, no multiple of a block."""
    random = np.random.default_rng(0)
    return tuple(np.maximum(1, random.lognormal(4, 2.5, SOURCES)).astype(int).clip(1, 30_000).tolist())


def test_quotas_are_whole_and_nearest_to_the_weights():
    assert by_weight([1]) == Quotas((BLOCK,))
    assert by_weight([1, 1, 1]) == Quotas((1366, 1365, 1365))
    assert by_weight([3, 1]) == Quotas((3072, 1024))
    assert by_weight([0.9997, 0.0003]) == Quotas((4095, 1))


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [float("nan")], [1, float("inf")]])
def test_a_weight_that_is_no_share_is_an_error(weights):
    with pytest.raises(UserError, match="data weights are"):
        by_weight(weights)


@pytest.mark.parametrize("small", [1e-5, 1e-9, 3e-7])
def test_weights_too_small_for_a_block_are_kept_in_the_long_run(small):
    shares = by_weight([1, small, 0.25])
    block = 3 * 10**9
    exact = np.array([1, small, 0.25]) / (1.25 + small) * block * BLOCK
    assert np.abs(shares.before(block) - exact).max() < 4
    assert shares.before(block).sum() == block * BLOCK


def test_budgets_of_120_sources_are_met_to_the_sample_and_evenly_all_along():
    counts = uneven_counts()
    shares, total = Counts(counts), sum(counts)
    assert total % BLOCK and max(counts) / min(counts) > 1000
    windows = np.array(counts) // 3 + 1
    for turn in (0, 1, 7):
        located = locate(turn * total + np.arange(total), shares, windows, seed=5)
        assert np.bincount(located.source_B, minlength=SOURCES).tolist() == list(counts)
        for source in range(0, SOURCES, 10):
            counted = np.cumsum(located.source_B == source)
            exact = counts[source] / total * np.arange(1, total + 1)
            assert np.abs(counted - exact).max() < 9 + 5 * np.sqrt(BLOCK * counts[source] / total)


def test_every_epoch_of_every_budgeted_source_takes_each_window_once():
    counts = (5000, 37, 900, 1)
    windows = np.array([1500, 40, 300, 1])
    located = locate(np.arange(3 * sum(counts)), Counts(counts), windows, seed=1)
    for source, size in enumerate(windows.tolist()):
        epochs = located.epoch_B[located.source_B == source]
        taken = located.window_B[located.source_B == source]
        assert len(taken) == 3 * counts[source]
        for epoch in range(int(epochs.max())):
            assert np.array_equal(np.sort(taken[epochs == epoch]), np.arange(size))


def test_samples_of_a_budgeted_blend_depend_on_nothing_but_their_numbers():
    counts = uneven_counts()
    windows = np.array(counts)
    whole = locate(np.arange(3 * BLOCK), Counts(counts), windows, seed=2)
    _locate_block.cache_clear()
    for sample in (0, 1, BLOCK - 1, BLOCK, 3 * BLOCK - 1):
        alone = locate(np.array([sample]), Counts(counts), windows, seed=2)
        assert [column[0] for column in alone] == [column[sample] for column in whole]
    other = locate(np.arange(3 * BLOCK), Counts(counts), windows, seed=3)
    assert (other.source_B != whole.source_B).mean() > 0.5


def test_the_order_of_a_budgeted_blend_never_changes_between_releases():
    """A promise: a run that was stopped must go on with the same data."""
    shares = Counts((2999, 1502, 499, 1))
    assert [shares.before(block).tolist() for block in (1, 2, 4)] == [
        [2455, 1231, 409, 1],
        [2999, 1502, 499, 1],
        [5998, 3004, 998, 2],
    ]
    samples = np.array([0, 1, 4095, 4096, 4999, 5000, 5001, 10**9, 10**15])
    located = locate(samples, shares, np.array([1000, 2000, 77, 1]), seed=42)
    assert located.source_B.tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert located.epoch_B.tolist() == [0, 0, 2, 0, 2, 2, 2, 599680, 599680063987]
    assert located.window_B.tolist() == [809, 549, 298, 1924, 755, 606, 208, 97, 25]


def test_a_sample_far_away_takes_no_memory():
    counts = tuple(10**12 + i for i in range(SOURCES))
    _locate_block.cache_clear()
    tracemalloc.start()
    try:
        locate(np.array([0, 10**13, 9 * 10**18 // 4096 * 4096]), Counts(counts), np.array(counts), seed=1)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_budgets_come_to_whole_samples():
    budgets = [Budget(tokens=1000), Budget(tokens=799), Budget(epochs=2.5), Budget(epochs=0.1)]
    assert by_budget(budgets, [100, 100, 7, 30], 10, list("abcd")) == Counts((100, 79, 18, 3))


def test_wrong_budgets_are_named_with_the_epochs_that_they_would_be():
    with pytest.raises(
        UserError, match=r"b has 1,000 tokens .* is 2,500: lower tokens, or write epochs: 2.5 "
    ):
        by_budget([Budget(tokens=100), Budget(tokens=2500)], [100, 100], 10, ["a", "b"])
    for budget in (Budget(tokens=9), Budget(epochs=0.001)):
        with pytest.raises(UserError, match="budget of a is less than one sample of 10 tokens"):
            by_budget([budget], [100], 10, ["a"])


def test_a_stream_reads_its_budgets_to_the_token(write_dataset):
    large = write_dataset("large", [3000])
    small = write_dataset("small", [100, 67], first=10_000)
    stream = TokenStream([(large, Budget(tokens=1600)), (small, Budget(epochs=3))], 16, seed=3)
    assert stream.samples_in_budget == 100 + 30
    tokens = stream.batch(np.arange(130)).tokens_BS
    found, times = np.unique(tokens[tokens < 10_000], return_counts=True)
    assert len(found) == 1600 and set(times.tolist()) == {1}
    assert (tokens >= 10_000).sum() == 480
    assert TokenStream([(large, 1.0)], 16, seed=3).samples_in_budget is None
    assert TokenStream([(large, 1.0), (small, 1e-6)], 16, seed=3).samples_in_budget is None
    with pytest.raises(UserError, match="some sources of the blend have a budget and some a weight"):
        TokenStream([(large, 1.0), (small, Budget(epochs=1))], 16, seed=3)
    assert stream.samples_before_repeats() < 130
    once = TokenStream([(large, Budget(tokens=1600)), (small, Budget(epochs=1))], 16, seed=3)
    assert once.samples_before_repeats() >= 110
