"""report.html: its numbers are those of report.json, nothing in it is obeyed, and it stays small."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from lxml import etree
from resiliparse.parse.html import HTMLTree, NodeType

from megalm import cli
from megalm.corpus.build import build_corpus
from megalm.corpus.report_page import MOST_ROWS, MOST_SAMPLED_REASONS, draw_page
from tests.corpus.recipes import make_recipe

pytestmark = pytest.mark.usefixtures("own_steps")
HOSTILE = """</pre></svg></style></title><script>alert(1)</script><img src=x onerror=alert(2)> "' onload='x' {{ 7*7 }} \x00\x1b\ud800"""
ELEMENTS = set(
    "html head meta title style body header h1 h2 h3 h4 p nav a dl div dt dd main section table caption thead tbody tr th td "
    "span svg rect g line text figure figcaption small details summary bdi article pre wbr br".split()
)
ATTRIBUTES = set(
    "lang charset http-equiv content name aria-label aria-labelledby aria-hidden href class id role scope colspan dir "
    "tabindex viewbox preserveaspectratio x y x1 x2 y1 y2 width height text-anchor open".split()
)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """A corpus of documents that would like to be markup, with reasons, languages, folders and damage."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = [
        {
            "id": f"</b><b>{number}",
            "text": f"{HOSTILE} {'word ' * number}",
            "url": f"javascript:alert({number})",
            "language": ["en", "de", "<script>"][number % 3],
            "<i>score</i>": 0.25,
        }
        for number in range(40)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + "{broken\n"
    (folder / "in.jsonl").write_text(text)
    steps = [
        {"length": {"min_characters": 200, "languages": ["en"]}},
        {"length": {"max_characters": 300}},
        "sort",
    ]
    from megalm.corpus import registry
    from tests.corpus.steps import NAMES

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "STEPS", registry.STEPS | NAMES)
        build_corpus(make_recipe(folder / "in.jsonl", folder / "out", steps, tasks=2, route={}))
    return folder / "out"


@pytest.fixture(scope="module")
def report(output) -> dict[str, Any]:
    return json.loads((output / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(output) -> str:
    return (output / "report.html").read_text(encoding="utf-8")


def nodes(page: str) -> list[Any]:
    """All elements, as a browser would see them."""
    return [node for node in HTMLTree.parse(page).document if node.type == NodeType.ELEMENT]


def rows(page: str, selector: str) -> list[list[str]]:
    """The texts of the cells of the rows that `selector` chooses."""
    return [
        [" ".join(cell.text.split()) for cell in row.query_selector_all("th, td")]
        for row in HTMLTree.parse(page).document.query_selector_all(selector)
    ]


def poisoned(value: Any) -> Any:
    """The same report with hostile text behind every string and every key that is neither a field nor a number."""
    if isinstance(value, str):
        return value + HOSTILE
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    if isinstance(value, dict):
        return {key: poisoned(item) for key, item in value.items()}
    return value


def poisoned_report(report: dict[str, Any]) -> dict[str, Any]:
    made = poisoned(report)
    for tally in [*made["sources"], *made["steps"], made["kept"]]:
        for field in ("removed", "counters", "samples"):
            tally[field] = {key + HOSTILE: value for key, value in tally[field].items()}
        tally["histograms"] = {
            name + HOSTILE: {key + HOSTILE: count for key, count in histogram.items()}
            for name, histogram in tally["histograms"].items()
        }
    made["stages"] = made["stages"] * 50
    made["versions"] = {key + HOSTILE: value for key, value in made["versions"].items()}
    made["recipe"][HOSTILE] = HOSTILE
    made["kept"]["samples"]["kept"] = next(iter(made["kept"]["samples"].values()))
    return made


def test_documents_cannot_become_markup(page, report):
    for html in (page, draw_page(poisoned_report(report))):
        found = nodes(html)
        assert {node.tag for node in found} <= ELEMENTS
        assert {name.lower() for node in found for name in node.attrs} <= ATTRIBUTES
        assert (
            html.count("<style>") == 1 and "<script" not in html and "{{" not in html.replace("{{ 7*7 }}", "")
        )
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html and not re.search("[\x00\x1b\ud800]", html)
        links = [node.getattr("href") for node in found if node.hasattr("href")]
        assert links and all(re.fullmatch("#[a-z0-9-]+", link) for link in links)
    assert "javascript:alert(" in page and "&lt;/b&gt;&lt;b&gt;" in page  # shown as text


def test_the_page_loads_nothing_and_forbids_scripts(page):
    policy = next(node for node in nodes(page) if node.getattr("http-equiv") == "Content-Security-Policy")
    assert policy.getattr("content").startswith("default-src 'none'; style-src 'unsafe-inline';")
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert not any(
        node.hasattr(name) for node in nodes(page) for name in ("src", "srcset", "xlink:href", "action")
    )


def test_links_lead_to_places_of_the_page_and_ids_are_unique(page):
    ids = [node.getattr("id") for node in nodes(page) if node.hasattr("id")]
    assert len(ids) == len(set(ids))
    links = {node.getattr("href")[1:] for node in nodes(page) if node.hasattr("href")}
    assert links <= set(ids) and {"funnel", "samples", "folders", "step-0"} <= links


def test_every_picture_has_a_name_and_a_table_or_stands_beside_its_numbers(page):
    document = HTMLTree.parse(page).document
    figures = document.query_selector_all("figure")
    assert len(figures) == 2 and all(figure.query_selector("table tbody tr th") for figure in figures)
    for svg in document.query_selector_all("svg"):
        named = svg.getattr("role") == "img" and svg.getattr("aria-label")
        assert named or (svg.getattr("aria-hidden") == "true" and svg.parent.tag == "td")


def test_every_picture_is_well_formed(page, report):
    for html in (page, draw_page(poisoned_report(report))):
        pictures = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
        assert len(pictures) >= 20
        for picture in pictures:
            etree.fromstring(picture)


def test_the_numbers_of_the_funnel_are_those_of_the_report(page, report):
    found = rows(page, "table.funnel tbody tr")
    expected = [("+ jsonl", report["sources"][0]["documents_out"], 0)]
    expected += [(s["step"], s["documents_out"], sum(s["removed"].values())) for s in report["steps"]]
    expected += [("kept", report["documents"], 0)]
    assert [(row[0], int(row[2].replace(",", "")), int(row[4].strip("−") or 0)) for row in found] == expected
    assert found[-1][3] == f"{report['documents'] / 40:.1%}"


def test_the_bars_of_the_funnel_are_as_long_as_their_numbers(page, report):
    bars = HTMLTree.parse(page).document.query_selector_all("table.funnel td.bar")
    for bar, step in zip(bars[1:-1], report["steps"], strict=True):
        widths = {
            rect.getattr("class"): float(rect.getattr("width")) for rect in bar.query_selector_all("rect")
        }
        assert widths["kept"] == pytest.approx(1000 * step["documents_out"] / 40, abs=0.01)
        assert widths.get("removed", 0) == pytest.approx(1000 * sum(step["removed"].values()) / 40, abs=0.01)


def test_reasons_steps_folders_and_damage_are_those_of_the_report(page, report):
    removed = {reason: n for step in report["steps"] for reason, n in step["removed"].items()}
    found = rows(page, "section[aria-labelledby=reasons] tbody tr")
    assert {row[0]: int(row[2]) for row in found} == removed and len(removed) == 3
    steps = rows(page, "section[aria-labelledby=steps] tbody tr[id]")
    assert [(row[0], int(row[1]), int(row[2])) for row in steps] == [
        (step["step"], step["documents_in"], step["documents_out"]) for step in report["steps"]
    ]
    folders = rows(page, "section[aria-labelledby=folders] tbody tr")
    assert {row[0]: (int(row[2]), int(row[4])) for row in folders} == {
        entry["folder"]: (entry["documents"], entry["shards"]) for entry in report["folders"]
    }
    damage = report["sources"][0]["counters"]
    assert damage == {"broken": 1, "invalid_utf8": 40}  # every text ends with half of a surrogate pair
    assert ["jsonl", "1", "0", "0", "40"] in rows(page, "section[aria-labelledby=sources] tbody tr")


def test_histograms_hold_every_document_before_and_after(page, report):
    figures = HTMLTree.parse(page).document.query_selector_all("figure")
    sums = {}
    for figure in figures:
        title = figure.query_selector("figcaption").text.split("\n")[0].strip()
        cells = [row.query_selector_all("td.number") for row in figure.query_selector_all("tbody tr")]
        sums[title] = [
            sum(int(cell.text.replace(",", "")) for cell in column) for column in zip(*cells, strict=True)
        ]
    assert sums["Characters of a document"] == [40, report["documents"]]
    assert sums["Language"] == [report["documents"]]  # no step `language` looked before


def test_samples_of_kept_and_of_each_reason_are_on_the_page(page, report):
    document = HTMLTree.parse(page).document
    shown = [" ".join(node.text.split()) for node in document.query_selector_all("article h4")]
    kept = [sample["id"] for sample in report["kept"]["samples"]["kept"]]
    removed = [s["id"] for step in report["steps"] for samples in step["samples"].values() for s in samples]
    assert shown == kept + removed and len(kept) == 5
    texts = [node.text for node in document.query_selector_all("article pre")]
    assert texts[0] == report["kept"]["samples"]["kept"][0]["text"].translate({0: 0xFFFD, 0x1B: 0xFFFD})
    assert report["kept"]["samples"]["kept"][0]["metadata"]["url"].startswith("javascript:")
    assert "\ufffd" in texts[0] and "\ud800" not in json.dumps(report, ensure_ascii=False)


def test_a_report_with_very_many_of_everything_stays_small(report):
    large = copy.deepcopy(report)
    template = large["steps"][0]
    large["steps"] = [
        {
            **template,
            "step": f"step{i}",
            "removed": {f"step{i}.r{j}": i + j for j in range(30)},
            "samples": {f"step{i}.r{j}": next(iter(template["samples"].values())) for j in range(30)},
            "histograms": {f"score{j}": {f"{n / 1000:.2g}": 1 for n in range(1000)} for j in range(3)},
        }
        for i in range(150)
    ]
    large["sources"] = [{**large["sources"][0], "step": f"s{i}"} for i in range(200)]
    large["kept"]["histograms"]["language"] = {f"l{i}": i for i in range(3000)}
    large["folders"] = [{**large["folders"][0], "folder": f"f{i}"} for i in range(1000)]
    large["recipe"]["words"] = [f"word{i}" for i in range(5_000)]
    page = draw_page(large)
    assert len(page) < 1_000_000
    assert len(rows(page, "table.funnel tbody tr")) == 10 + 1 + MOST_ROWS + 1
    assert "and 300 more rows" in page.replace(str(190 + 110), "300")
    assert f"and {4500 - MOST_SAMPLED_REASONS:,} more reasons with samples" in page
    assert "and 960 more folders" in page and "more histograms" in page and "more lines" in page
    assert rows(page, "table.funnel tbody tr")[-2][0] == "step149"  # those that removed most, in their order
    assert "step149.r29" in page and "step0.r0 " not in page


def test_the_page_is_drawn_again_from_the_report_alone(output, page, capsys, tmp_path):
    copied = tmp_path / "copy"
    copied.mkdir()
    (copied / "report.json").write_bytes((output / "report.json").read_bytes())
    assert cli.main(["corpus", "report", str(copied)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "step" and lines[-1] == str(copied / "report.html")
    assert (copied / "report.html").read_text(encoding="utf-8") == page


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no report.json; name a corpus"),
        ('{"kind": "x"}', "is not the report of a corpus"),
        ('{"kind": "megalm corpus"}', "has no 'sources': another version of megalm wrote it"),
    ],
)
def test_no_report_is_one_line(tmp_path, capsys, content, message):
    if content:
        (tmp_path / "report.json").write_text(content)
    assert cli.main(["corpus", "report", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_corpus_of_nothing_has_a_page(tmp_path):
    (tmp_path / "in.jsonl").write_text("")
    build_corpus(make_recipe(tmp_path / "in.jsonl", tmp_path / "out", []))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "No document was kept." in page and "No document was removed." in page


def test_every_field_of_the_report_is_documented(report):
    text = (Path(__file__).parents[2] / "docs" / "corpus.md").read_text()
    text = text[text.index("## The report") :]
    fields = {
        *report,
        *report["steps"][0],
        *report["folders"][0],
        *report["stages"][0],
        *report["kept"]["samples"]["kept"][0],
    }
    assert {field for field in fields if f"`{field}`" not in text} == set()
