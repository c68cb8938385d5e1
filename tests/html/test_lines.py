"""Charts of curves: numbers stand where their axis says, gaps stay gaps, and no name becomes markup."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from megalm.html.lines import MOST_POINTS, Line, line_chart, round_ticks, thinned, tick_labels

HOSTILE = "</svg><script>alert(1)</script>\" onload='x' &amp; \x00\ud800"
ANY = st.floats(allow_nan=True, allow_infinity=True)


def line(y, kind="line", name="run", style="run-0"):
    return Line(name, style, kind, np.arange(1.0, len(y) + 1), np.array(y, dtype=float))


def points(svg, kind):
    """Of each part of the path of the lines of a kind, in the picture's units."""
    (group,) = (g for g in etree.fromstring(svg).iter("g") if g.get("class").startswith(kind))
    parts = group.find("path").get("d").split("M")[1:]
    return [[tuple(map(float, point.split())) for point in part.split("L")] for part in parts]


def grid(svg):
    """Heights of the lines of the grid by what is written beside them."""
    tree = etree.fromstring(svg)
    heights = [float(found.get("y1")) for found in tree.iter("line")]
    labels = [found.text for found in tree.iter("text") if found.get("text-anchor") == "end"][: len(heights)]
    return dict(zip(labels, heights, strict=True))


def test_numbers_stand_at_the_height_of_their_marks():
    svg = line_chart([line([0.0, 1.0, 2.0, 4.0])], "t", "nats").svg
    ((first, second, third, fourth),) = points(svg, "line")
    marks = grid(svg)
    assert [first[1], second[1], third[1], fourth[1]] == pytest.approx(
        [marks["0"], marks["1"], marks["2"], marks["4"]], abs=0.06
    )
    assert second[0] - first[0] == pytest.approx(fourth[0] - third[0], abs=0.11) and first[0] < fourth[0]


def test_a_number_that_is_not_finite_is_a_gap():
    svg = line_chart([line([1.0, math.nan, 3.0, 2.0, math.inf])], "t", "u").svg
    assert [len(part) for part in points(svg, "line")] == [1, 2]


def test_nothing_finite_is_no_chart():
    assert line_chart([], "t", "u") is None
    assert line_chart([line([math.nan, -math.inf])], "t", "u") is None


def test_outliers_of_raw_numbers_do_not_flatten_the_rest_and_are_counted():
    values = [1.0, 2.0] * 200
    values[100] = 1e6
    drawn = line_chart([line(values, "raw")], "t", "u")
    assert drawn.beyond == 1 and max(float(label) for label in grid(drawn.svg)) < 5
    assert line_chart([line(values, "line")], "t", "u").beyond == 0


@given(st.lists(ANY, max_size=30), st.sampled_from(["raw", "line", "dots"]))
def test_any_numbers_make_a_chart_within_its_frame(values, kind):
    drawn = line_chart([line(values, kind)], "t", "u")
    if drawn is None:
        assert not any(abs(value) < 1e100 for value in values)
        return
    for part in points(drawn.svg, kind):
        for x, y in part:
            assert 0 <= x <= 360 and 0 <= y <= 210


def test_hostile_names_stay_text():
    tree = etree.fromstring(line_chart([line([1, 2], name=HOSTILE)], HOSTILE, HOSTILE, HOSTILE).svg)
    assert {node.tag for node in tree.iter()} == {"svg", "g", "line", "text", "title", "path"}
    assert "<script>alert(1)</script>" in tree.get("aria-label") and "onload" not in tree.attrib


@given(st.floats(-1e90, 1e90), st.floats(-1e90, 1e90))
def test_ticks_are_few_round_and_cover_the_numbers(one, other):
    low, high = sorted((one, other))
    if high - low <= max(abs(low), abs(high)) * 1e-6 or high - low < 1e-290:
        return
    ticks = round_ticks(low, high)
    slack = 1e-8 * (ticks[1] - ticks[0]) + 1e-11 * max(abs(low), abs(high))
    assert 2 <= len(ticks) <= 7 and ticks[0] <= low + slack and ticks[-1] >= high - slack
    assert sorted(set(ticks)) == ticks


@pytest.mark.parametrize(
    ("ticks", "labels"),
    [
        ([0.0, 0.2, 0.4], ["0", "0.2", "0.4"]),
        ([0.69, 0.692, 0.694], ["0.690", "0.692", "0.694"]),
        ([0.0, 20000.0, 40000.0], ["0", "20k", "40k"]),
        ([0.0, 1e-05, 2e-05], ["0", "1e-05", "2e-05"]),
        ([1500000.0, 1550000.0], ["1.50M", "1.55M"]),
        ([0.0, 500.0, 1000.0], ["0", "500", "1000"]),
    ],
)
def test_labels_tell_ticks_apart(ticks, labels):
    assert tick_labels(ticks) == labels


def test_thinning_keeps_peaks_ends_and_gaps():
    x, y = np.arange(10000.0), np.sin(np.arange(10000.0))
    y[5003], y[7007], y[2000:2200] = 50.0, -50.0, np.nan
    few_x, few_y = thinned(x, y)
    assert len(few_x) <= MOST_POINTS + 2 and few_x[0] == 0 and few_x[-1] == 9999
    assert 50.0 in few_y and -50.0 in few_y and np.isnan(few_y).any()
    assert (np.diff(few_x) > 0).all()
