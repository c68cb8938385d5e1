"""Pictures: well-formed SVG whatever the names, and sizes in proportion to the numbers."""

import pytest
from jinja2 import UndefinedError
from lxml import etree

from megalm.html.bins import make_bins
from megalm.html.chart import MOST_LABELS, make_chart
from megalm.html.numbers import counted, duration, percent, short
from megalm.html.page import environment
from megalm.html.picture import columns, element, strip

HOSTILE = "</svg><script>alert(1)</script>\" onload='x' &amp; \x00\x08\ud800"


def rectangles(svg: str, style: str) -> list[dict[str, float]]:
    return [
        {name: float(rectangle.get(name)) for name in ("x", "y", "width", "height")}
        for rectangle in etree.fromstring(svg).iter("rect")
        if rectangle.get("class") == style
    ]


def test_columns_are_as_high_as_their_counts():
    bins = make_bins({"1": 50, "2": 100, "3": 0}, {"1": 25, "2": 100, "3": 0})
    svg = columns(bins, ("before", "kept"), ("before", "kept"), "lengths")
    wide, narrow = rectangles(svg, "before"), rectangles(svg, "kept")
    assert wide[1]["height"] == pytest.approx(2 * wide[0]["height"], abs=0.02)
    assert narrow[0]["height"] == pytest.approx(wide[0]["height"] / 2, abs=0.02) and wide[2]["height"] == 0
    assert all(inner["width"] < outer["width"] for inner, outer in zip(narrow, wide, strict=True))
    assert {round(it["y"] + it["height"], 1) for it in [*wide, *narrow]} == {wide[0]["y"] + wide[0]["height"]}
    titles = [title.text for title in etree.fromstring(svg).iter("title")]
    assert titles == ["1: before 50, kept 25", "2: before 100, kept 100", "3: before 0, kept 0"]


def test_strips_are_as_long_as_their_shares_and_the_smallest_can_be_seen():
    svg = strip((0.5, "kept"), (0.25, "removed"), (0.0, "never"), (1e-9, "kept"))
    (half, tiny), (quarter,) = rectangles(svg, "kept"), rectangles(svg, "removed")
    assert (half["x"], half["width"], quarter["x"], quarter["width"]) == (0, 500, 500, 250)
    assert tiny["width"] >= 2 and not rectangles(svg, "never")
    assert etree.fromstring(strip()).tag == "svg"


def test_hostile_names_stay_text():
    bins = make_bins({"1": 1, "7": 2})
    svg = columns(bins, (HOSTILE,), ("kept",), HOSTILE)
    tree = etree.fromstring(svg)
    assert {node.tag for node in tree.iter()} == {"svg", "g", "rect", "line", "text", "title"}
    assert "<script>alert(1)</script>" in tree.get("aria-label") and "onload" not in tree.attrib
    assert etree.fromstring(element("a", HOSTILE, title=HOSTILE)).text.startswith("</svg><script>")


def test_labels_are_few_and_the_rest_is_counted():
    chart = make_chart(
        "languages", {"before": {f"l{n:04}": n for n in range(1, 3001)}, "kept": {"l3000": 1000}}
    )
    assert chart.picture is None and len(chart.rows) == MOST_LABELS
    assert chart.rows[0].label == "l3000" and chart.rows[0].counts == (3000, 1000)
    assert chart.left_out == 3000 - MOST_LABELS
    assert chart.left_out_counts == (sum(range(1, 3001 - MOST_LABELS)), 0)
    (kept,), (before,) = rectangles(chart.rows[0].bar, "kept"), rectangles(chart.rows[0].bar, "before")
    assert kept["width"] == pytest.approx(1000 / 3, abs=0.01) and before["width"] == pytest.approx(
        2000 / 3, abs=0.01
    )


def test_a_chart_of_numbers_has_all_of_them_in_its_table():
    chart = make_chart("scores", {"documents": {"0.1": 3, "0.9": 4, "nan": 2}})
    assert sum(row.counts[0] for row in chart.rows) == 7 and chart.left_out_counts == (2,)
    etree.fromstring(chart.picture)


def test_templates_escape_without_being_asked_and_miss_no_value():
    template = environment("megalm.corpus").from_string("{{ text }}")
    assert template.render(text=HOSTILE) == (
        "&lt;/svg&gt;&lt;script&gt;alert(1)&lt;/script&gt;&#34; onload=&#39;x&#39; &amp;amp; \ufffd\ufffd\ufffd"
    )
    name = environment("megalm.corpus").from_string("{{ name|breakable }}").render(name="a.b_<i>")
    assert name == "a.<wbr>b_<wbr>&lt;i&gt;"
    with pytest.raises(UndefinedError):
        template.render()


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (counted, 1234567, "1,234,567"),
        *((short, value, text) for value, text in ((0, "0"), (0.05, "0.05"), (999, "999"), (1000, "1k"))),
        *((short, value, text) for value, text in ((1234, "1.23k"), (999_999, "1M"), (-35e6, "-35M"), (2e14, "200T"))),
        *((percent, value, text) for value, text in ((0, "0.0%"), (1, "100.0%"), (0.5, "50.0%"), (0.99999, "99.999%"))),
        *((percent, value, text) for value, text in ((0.0004, "0.04%"), (1.25, "125.0%"))),
        *((duration, value, text) for value, text in ((0, "0 s"), (1.23e-7, "0.12 µs"), (0.00099, "990 µs"), (0.0123, "12 ms"), (0.123, "0.12 s"), (45.4, "45 s"), (200, "3 min 20 s"))),
        *((duration, value, text) for value, text in ((59.9, "60 s"), (3599.9, "59 min 59 s"), (18_720, "5 h 12 min"))),
    ],
)  # fmt: skip
def test_numbers_are_short_and_true(function, value, text):
    assert function(value) == text
