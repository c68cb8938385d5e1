"""Bins of histograms: no document is lost or counted twice, borders are round, and there are few of them."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalm.html.bins import MOST_BINS, make_bins

VALUES = st.one_of(
    st.floats(-1e308, 1e308), st.floats(0, 1), st.integers(-30, 30), st.sampled_from([0, 1e-300, 5e-324, 1e308, 100])
)  # fmt: skip
HISTOGRAMS = st.dictionaries(VALUES.map(lambda value: f"{value:.2g}"), st.integers(1, 1000), min_size=1)


def number_of(key: str) -> float:
    return 0.0 if abs(float(key)) < 1e-290 else float(key)


@given(HISTOGRAMS, HISTOGRAMS)
def test_every_count_is_in_the_bin_of_its_value_and_no_other(first, second):
    bins = make_bins(first, second)
    assert 1 <= len(bins) <= MOST_BINS + 1  # values of 0 have a bin before the logarithmic ones
    for before, after in pairwise(bins):
        assert before.low < before.high == after.low
    for place, histogram in enumerate((first, second)):
        for place_of_bin, bin in enumerate(bins):
            last = place_of_bin == len(bins) - 1
            inside = [
                count
                for value, count in histogram.items()
                if bin.low <= number_of(value)
                and (number_of(value) < bin.high or (last and number_of(value) == bin.high))
            ]
            assert bin.counts[place] == sum(inside)
        assert sum(bin.counts[place] for bin in bins) == sum(histogram.values())


def test_lengths_have_logarithmic_bins_with_round_borders():
    bins = make_bins({str(10**power): power + 1 for power in range(1, 7)})
    assert [bin.low for bin in bins[:4]] == [10, 20, 50, 100] and bins[-1].low == 1e6
    assert [bin.label for bin in bins[:4]] == ["10–20", "20–50", "50–100", "100–200"]
    assert {bin.low: bin.counts[0] for bin in bins if bin.counts[0]} == {10.0**p: p + 1 for p in range(1, 7)}


def test_scores_have_equal_bins_and_1_has_none_of_its_own():
    bins = make_bins({"0.05": 1, "0.51": 2, "0.99": 3, "1": 4})
    assert [bin.low for bin in bins] == [pytest.approx(0.05 * n) for n in range(1, 20)]
    assert bins[-1].high == 1 and bins[-1].counts == (7,)
    halves = make_bins({f"{n / 20:.2g}": n for n in range(20)})
    assert [(bin.low, bin.counts) for bin in halves] == [(pytest.approx(n / 20), (n,)) for n in range(20)]


def test_small_whole_numbers_have_a_bin_each():
    assert [(bin.label, bin.counts) for bin in make_bins({"2": 5, "5": 1}, {"3": 2})] == [
        *(("2", (5, 0)), ("3", (0, 2)), ("4", (0, 0)), ("5", (1, 0)))
    ]


@pytest.mark.parametrize("histogram", [{"en": 1, "5": 1}, {"nan": 3}, {"inf": 1, "-inf": 1}, {}])
def test_labels_are_no_numbers(histogram):
    assert make_bins(histogram) is None


def test_what_is_not_finite_is_left_out():
    (bin,) = make_bins({"nan": 3, "inf": 2, "0.5": 7})
    assert bin.counts == (7,) and math.isfinite(bin.high)
