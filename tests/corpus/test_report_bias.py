"""The parts of report.html on groups: the numbers of report.json, coloured where they are more than chance."""

from typing import Any

import pytest
from resiliparse.parse.html import HTMLTree

from megalm.corpus.report_bias import MOST_GROUPS, MOST_STEPS, removal_table
from megalm.corpus.report_page import draw_page

HOSTILE = "<script>alert(1)</script>"


def tally(step: str, **values: Any) -> dict[str, Any]:
    counts = {"documents_in": 0, "documents_out": 0, "characters_in": 0, "characters_out": 0, "seconds": 0.0}
    return {"step": step, **counts, "removed": {}, "counters": {}, "histograms": {}, "samples": {}} | values


def group(name: str, risk: float | None, significant: bool, documents: int = 50) -> dict[str, Any]:
    rate = 0.1 * (risk or 0)
    return {
        "group": name,
        "documents_in": documents,
        "removed": round(rate * documents),
        "rate": rate,
        "low": rate / 2,
        "high": rate * 2,
        "relative_risk": risk,
        "significant": significant,
    }


def mentioned(name: str, mentions: int) -> dict[str, Any]:
    return {
        "group": name,
        "axis": name.partition(".")[0],
        "mentions": mentions,
        "documents": mentions // 2,
        "share": 0.25,
        "low": 0.2,
        "high": 0.3,
        "share_of_axis": 0.5,
        "per_million_words": 1800.0,
    }


def association(word: str, together: int, low: float | None, significant: bool) -> dict[str, Any]:
    return {
        "group": "gender.female",
        "word": word,
        "together": together,
        "expected": 4.1,
        "odds_ratio": 5.2,
        "low": low,
        "high": 9.4,
        "significant": significant,
    }


@pytest.fixture
def report() -> dict[str, Any]:
    rows = [
        group("age.old", 4.0, True),
        group(f"gender.{HOSTILE}", 0.5, True),
        group("age.young", 3.0, False),
        group("age", None, False),
    ]
    removal = [
        {
            "stage": "00-read",
            "step": "gopher",
            "documents_in": 1000,
            "removed": 100,
            "rate": 0.1,
            "groups": rows,
        }
    ]
    other = {
        **removal[0],
        "step": "c4",
        "groups": [group("age.old", 1.0, True), group("gender.x", 0.0, True)],
    }
    representation = {
        "stage": "00-read",
        "documents": 1000,
        "words": 500_000,
        "sentences": 30_000,
        "groups": [mentioned("gender.male", 40), mentioned("age.old", 20)],
        "words_of": [mentioned("profession.nurse", 12)],
        "associations": [
            association(f"profession.{HOSTILE}", 12, 2.9, True),
            association("profession.chance", 12, 1.2, False),
            association("profession.less", 12, 0.1, True),
            association("profession.never", 0, 19.0, True),
        ],
    }
    return {
        "megalm": "0",
        "documents": 900,
        "characters": 9000,
        "shards": ["00000.jsonl.zst"],
        "sources": [tally("jsonl", documents_out=1000)],
        "steps": [tally("gopher")],
        "kept": tally("kept", documents_out=900),
        "stages": [],
        "recipe": {"output": "x"},
        "removal_by_group": [removal[0], other],
        "representation": [representation],
    }


def rows(page: str, section: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Of each row of a section its name, and the classes and texts of its cells."""
    document = HTMLTree.parse(page).document
    return [
        (
            row.query_selector("th").text,
            [(cell.getattr("class"), " ".join(cell.text.split())) for cell in row.query_selector_all("td")],
        )
        for row in document.query_selector_all(f"section[aria-labelledby={section}] tbody tr")
    ]


def test_removal_is_coloured_where_it_is_more_than_chance(report):
    found = dict(rows(draw_page(report), "removal"))
    assert found["age.old"] == [
        ("number heat heat-more-4", "40.0% ×4"),
        ("number heat heat-same", "10.0% ×1"),
    ]
    assert found[f"gender.{HOSTILE}"] == [("number heat heat-less-2", "5.0% ×0.5"), ("number quiet", "–")]
    assert found["age.young"] == [("number heat heat-none", "30.0% ×3"), ("number quiet", "–")]
    assert found["age"][0] == ("number heat heat-none", "0.0%")
    assert found["gender.x"] == [("number quiet", "–"), ("number heat heat-less-4", "0.0% ×0")]


def test_representation_shows_mentions_and_words_that_stand_beside_a_group(report):
    found = rows(draw_page(report), "representation")
    assert [(name, cells[1][1], cells[2][1], cells[3][1]) for name, cells in found[:3]] == [
        ("age.old", "20", "10", "25.0%"),
        ("gender.male", "40", "20", "25.0%"),
        ("profession.nurse", "12", "6", "25.0%"),
    ]
    (beside,) = found[3:]
    assert [text for _, text in beside[1]] == [f"profession.{HOSTILE}", "12", "4.1", "5.2", "2.9–9.4"]


def test_names_of_groups_cannot_become_markup_and_sections_are_there_only_with_figures(report):
    page = draw_page(report)
    assert not HTMLTree.parse(page).document.query_selector("script")
    del report["removal_by_group"], report["representation"]
    page = draw_page(report)
    assert "#removal" not in page and "#representation" not in page


def test_of_very_many_groups_and_steps_the_most_uneven_are_shown():
    groups = [group(f"axis.{number:03}", 1 + number / 100, number % 2 == 0) for number in range(200)]
    steps = [{"step": f"s{i}", "removed": i, "rate": 0.1, "groups": groups} for i in range(30)]
    table = removal_table(steps)
    assert [step["step"] for step in table.steps.rows] == [f"s{i}" for i in range(30 - MOST_STEPS, 30)]
    assert table.steps.more == 30 - MOST_STEPS and table.groups.more == 200 - MOST_GROUPS
    assert [name for name, _ in table.groups.rows] == [
        f"axis.{number:03}" for number in range(200 - 2 * MOST_GROUPS, 200, 2)
    ]
