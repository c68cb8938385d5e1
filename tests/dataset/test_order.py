"""The order of samples: exact epochs, an exact blend, and the same answer for ever."""

import numpy as np
import pytest

from megalm.dataset.order import locate, permutation
from megalm.dataset.shares import BLOCK, by_weight

WINDOWS = np.array([9000, 5000, 700, 333])
WEIGHTS = [0.5, 0.3, 0.15, 0.05]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 1000, 4096, 65537])
@pytest.mark.parametrize("key", [0, 7, 2**64 - 1])
def test_permutation_is_a_bijection(size, key):
    assert np.array_equal(np.sort(permutation(np.arange(size), size, key)), np.arange(size))


def test_permutations_of_unlike_keys_and_neighbouring_places_are_unrelated():
    size = 5 * 10**8
    index = np.arange(20_000)
    one, other = permutation(index, size, 1).astype(float), permutation(index, size, 2).astype(float)
    assert abs(np.corrcoef(index, one)[0, 1]) < 0.03
    assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 0.03
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03
    assert abs(one.mean() / size - 0.5) < 0.01


def test_permutation_stays_inside_sizes_near_2_to_the_62():
    size = 2**62 - 1
    result = permutation(np.array([0, 1, size - 1]), size, 3)
    assert ((result >= 0) & (result < size)).all()
    assert len(set(result.tolist())) == 3


def test_every_epoch_of_every_source_takes_each_window_once():
    located = locate(np.arange(60_000), by_weight(WEIGHTS), WINDOWS, seed=1)
    for source, windows in enumerate(WINDOWS.tolist()):
        epochs = located.epoch_B[located.source_B == source]
        taken = located.window_B[located.source_B == source]
        assert (np.diff(epochs) >= 0).all()
        for epoch in range(int(epochs[-1])):
            assert np.array_equal(np.sort(taken[epochs == epoch]), np.arange(windows))
        last = taken[epochs == epochs[-1]]
        assert len(np.unique(last)) == len(last)


def test_epochs_differ_in_order():
    quotas, windows = by_weight([1]), np.array([1000])
    located = locate(np.arange(2000), quotas, windows, seed=1)
    assert (located.window_B[:1000] == located.window_B[1000:]).mean() < 0.02


def test_blend_keeps_to_the_weights_all_along():
    located = locate(np.arange(10 * BLOCK), by_weight(WEIGHTS), WINDOWS, seed=1)
    for source, weight in enumerate(WEIGHTS):
        counted = np.cumsum(located.source_B == source)
        assert abs(counted - weight * np.arange(1, len(counted) + 1)).max() < 80


def test_samples_depend_on_nothing_but_their_numbers():
    quotas = by_weight(WEIGHTS)
    samples = np.array([10**12, 3, 70_000, 10**9 + 1, 4095, 4096, 3])
    together = locate(samples, quotas, WINDOWS, seed=1)
    for place, sample in enumerate(samples):
        alone = locate(np.array([sample]), quotas, WINDOWS, seed=1)
        assert [array[0] for array in alone] == [array[place] for array in together]


def test_another_seed_is_another_order():
    quotas = by_weight(WEIGHTS)
    one, other = (locate(np.arange(1000), quotas, WINDOWS, seed) for seed in (1, 2))
    assert (one.source_B == other.source_B).mean() < 0.6
    assert (one.window_B == other.window_B).mean() < 0.02


def test_order_never_changes_between_releases():
    """A run that was stopped must go on with the same data: these values are a promise, not an expectation."""
    samples = np.array([0, 1, 2, 9, 4097, 9000, 10**9, 10**9 + 5, 10**12 + 9])
    located = locate(samples, by_weight([0.7, 0.3]), np.array([10_000, 333]), seed=42)
    assert located.source_B.tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert located.epoch_B.tolist() == [0, 0, 0, 0, 3, 0, 69995, 69995, 901047531]
    assert located.window_B.tolist() == [1346, 4295, 3753, 2063, 240, 4280, 3094, 6900, 322]
