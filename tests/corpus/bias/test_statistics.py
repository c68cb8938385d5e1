"""Figures and their intervals against SciPy's."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.stats import contingency

from megalm.corpus.bias.statistics import discoveries, mutual_information, odds_ratio, relative_risk, share

COUNTS = st.integers(1, 10_000)
close = pytest.approx


@given(COUNTS, st.floats(0, 1))
def test_shares_have_wilsons_interval(total, part):
    count = round(total * part)
    value, low, high = share(count, total)
    interval = stats.binomtest(count, total).proportion_ci(method="wilson")
    assert value == count / total
    assert (low, high) == (close(interval.low, abs=1e-12), close(interval.high, abs=1e-12))


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_odds_ratios_have_woolfs_interval(a, b, c, d):
    expected = contingency.odds_ratio([[a, b], [c, d]], kind="sample")
    interval = expected.confidence_interval()
    assert odds_ratio(a, b, c, d)[:3] == (
        close(expected.statistic),
        close(interval.low, rel=1e-9),
        close(interval.high, rel=1e-9),
    )


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_relative_risks_have_katzs_interval_and_p_agrees_with_it(count, more, other, other_more):
    found = relative_risk(count, count + more, other, other + other_more)
    expected = contingency.relative_risk(count, count + more, other, other + other_more)
    interval = expected.confidence_interval()
    assert found[:3] == (
        close(expected.relative_risk),
        close(interval.low, rel=1e-9),
        close(interval.high, rel=1e-9),
    )
    level = expected.confidence_interval(confidence_level=1 - found.p) if 1e-12 < found.p < 1 else None
    if level is not None:  # an interval of that level just reaches 1
        assert min(abs(math.log(level.low)), abs(math.log(level.high))) < 1e-3


def test_a_zero_makes_nothing_out_of_few_documents_beside_many():
    """Of 0 removed on both sides nothing follows, whatever their sizes; each set gets its part of one."""
    for total in (1, 4, 500):
        found = relative_risk(0, total, 0, 500)
        assert found.value == close(1) and found.p == close(1)
    found = relative_risk(0, 4, 3, 5)
    assert found.value == close((4 / 9 / (4 + 8 / 9)) / ((3 + 5 / 9) / (5 + 10 / 9)))
    assert found.low < 1 < found.high


def test_zeros_are_counted_as_a_half():
    a, b, c, d = 0.5, 4.5, 3.5, 2.5
    deviation = math.sqrt(1 / a + 1 / b + 1 / c + 1 / d)
    found = odds_ratio(0, 4, 3, 2)
    assert found.value == close(a * d / b / c)
    assert math.log(found.high / found.value) == close(1.96 * deviation, rel=1e-4)


def test_mutual_information_of_a_hand_counted_table():
    assert mutual_information(4, 8, 8, 64) == 2.0  # 1/16 against 1/8 * 1/8
    assert mutual_information(1, 8, 8, 64) == 0.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_discoveries_are_those_whose_adjusted_p_is_small(p_values):
    adjusted = stats.false_discovery_control(p_values)
    edge = min(abs(value - 0.05) for value in adjusted)
    if edge > 1e-12:
        assert discoveries(p_values) == [bool(value <= 0.05) for value in adjusted]
    assert discoveries([]) == []
