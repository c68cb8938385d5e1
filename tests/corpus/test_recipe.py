"""Recipes: mistakes are one line that names the place and the mend; work is dealt out evenly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalm.corpus.plan import deal
from megalm.corpus.recipe import load_recipe, parse_recipe
from megalm.corpus.sources import KINDS, source_class
from megalm.corpus.sources.base import InputFile, Part
from megalm.errors import UserError

GOOD = {
    "output": "out",
    "sources": [{"kind": "jsonl", "path": "in"}],
    "steps": [{"length": {"min_characters": 3}}],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outputs": "x"}, "unknown key `outputs`: did you mean 'output'"),
        ({"output": None}, "`output` = None"),
        ({"sources": []}, "`sources` = \\[\\]"),
        ({"sources": [{"path": "in"}]}, "sources.0: `kind` is missing"),
        (
            {"sources": [{"kind": "jsnl", "path": "in"}]},
            "sources.0: unknown kind of source `jsnl`: did you mean 'jsonl'",
        ),
        ({"sources": [{"kind": "jsonl"}]}, "sources.0: `path` is missing"),
        (
            {"sources": [{"kind": "text", "path": "in", "sample": 1}]},
            "unknown key `sample`: did you mean 'sample_by'",
        ),
        ({"steps": ["lenth"]}, "steps.0: unknown step `lenth`: did you mean 'length'"),
        (
            {"steps": [{"length": {"min_chars": 3}}]},
            "steps.0.length: unknown key `min_chars`: did you mean 'min_characters'",
        ),
        ({"steps": [{"length": {"min_characters": -3}}]}, "steps.0.length: `min_characters` = -3"),
        (
            {"steps": [{"length": None, "other": None}]},
            "one step with its options is expected, found length, other",
        ),
        ({"executor": {"kind": "slrm"}}, "`executor.kind` = 'slrm'"),
        (
            {"executor": {"slurm": {"partion": "x"}}},
            "unknown key `executor.slurm.partion`: did you mean 'partition'",
        ),
        ({"tasks": 0}, "`tasks` = 0"),
        ({"output": ""}, "`output` = ''"),
        ({"output": "~no.such.user/x"}, "`output` = '~no.such.user/x': there is no such user"),
        ({"steps": [{"length": {"min_characters": 9, "max_characters": 3}}]}, "min_characters is more than"),
        (
            {"steps": [{"language": {"keep": ["english"]}}]},
            "`keep` = .*english is no code of two or three small letters",
        ),
        ({"steps": [{"language": {"keep": ["EN"]}}]}, "`keep` = .*EN is no code"),
        ({"steps": [{"language": {"keep": []}}]}, "`keep` = \\[\\]"),
        ({"steps": [{"language": {"thresholds": {"German": 0.5}}}]}, "`thresholds`: German is no code"),
        (
            {"sources": [{"kind": "warc", "path": "in"}], "steps": ["url_words", "length", "extract"]},
            "steps.1.length looks at texts, and the source `warc` gives raw pages; put the step `extract` before",
        ),
        (
            {"sources": [{"kind": "html", "path": "in", "name": "site"}], "steps": ["language"]},
            "steps.0.language looks at texts, and the source `site` gives raw pages",
        ),
    ],
)
def test_mistakes_are_one_line(change, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_recipe(GOOD | change)
    assert "\n" not in str(caught.value)


def test_a_recipe_from_a_file_with_overrides(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "output: out\nsources:\n  - {kind: text, path: in}\nsteps: [length, length: {min_characters: 5}]\n"
    )
    recipe = load_recipe(path, ["steps.1.length.min_characters=7", "executor.workers=2"])
    assert [step.settings.min_characters for step in recipe.steps] == [1, 7]
    assert recipe.file.executor.workers == 2
    resolved = recipe.resolved()
    assert "executor" not in resolved and resolved["sources"][0]["sample_by"] == "document"
    assert parse_recipe(resolved).resolved() == resolved
    path.write_text("- a list")
    with pytest.raises(UserError, match="expected keys"):
        load_recipe(path)
    with pytest.raises(UserError, match="no such configuration file"):
        load_recipe(tmp_path / "none.yaml")


def test_texts_need_no_extraction_and_steps_behind_it_may_look_at_texts():
    wet = {"kind": "commoncrawl", "crawl": "x", "format": "wet"}
    assert parse_recipe(GOOD | {"sources": [wet, *GOOD["sources"]]})
    pages = [{"kind": "crawl", "url": "http://x/"}, {"kind": "commoncrawl", "crawl": "x"}]
    for source in pages:
        steps = ["url_words", "extract", "language", "length"]
        assert len(parse_recipe(GOOD | {"sources": [source], "steps": steps}).steps) == 4
        with pytest.raises(UserError, match="raw pages"):
            parse_recipe(GOOD | {"sources": [source]})


REQUIRED = {"commoncrawl": {"crawl": "x"}, "crawl": {"url": "http://x/"}}


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_of_every_source_is_described(kind):
    source = source_class(kind)
    assert source.model_validate({"path": "x"} | REQUIRED.get(kind, {})).kind == kind
    assert all(field.description for field in source.model_fields.values())


def test_an_empty_path_is_not_the_working_directory():
    with pytest.raises(UserError, match="a path is empty"):
        source_class("jsonl").model_validate({"path": [""]}).files()


@given(st.lists(st.integers(0, 100), min_size=1, max_size=50), st.integers(1, 50))
def test_parts_are_dealt_out_in_order_evenly_and_no_task_is_empty(sizes, count):
    count = min(count, len(sizes))
    parts = [Part(0, InputFile("p", "p", size, 0), 0, None) for size in sizes]
    tasks = deal(parts, count)
    assert [part for task in tasks for part in task] == parts and len(tasks) == count and all(tasks)
    average, largest = sum(sizes) / count, max(sizes)
    assert all(sum(part.size for part in task[:-1]) <= average + largest for task in tasks)
