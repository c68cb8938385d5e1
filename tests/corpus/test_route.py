"""Routing: each document in the folder of its value, few folders with safe names, the same bytes after kills."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megalm.corpus import route
from megalm.corpus.build import build_corpus
from megalm.corpus.route import OTHER, folder_name
from megalm.corpus.shards import read_shard, shard_paths
from megalm.corpus.show import show_documents
from megalm.errors import UserError
from megalm.tokenizer.documents import expand_inputs
from tests.corpus.recipes import documents_of, make_recipe
from tests.corpus.test_build import killed_build

LANGUAGES = [*["en"] * 6, *["de"] * 3, "FR", "fr", "la", "../up", *[None] * 4]


@pytest.fixture
def inputs(tmp_path):
    """Documents in the languages above, in two files."""
    (tmp_path / "in").mkdir()
    for file in range(2):
        lines = [
            {"id": f"{file}-{number}", "text": f"text {number}", "language": language}
            for number, language in enumerate(LANGUAGES)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "in" / f"{file}.jsonl").write_text(text)
    return tmp_path / "in"


def ids(output: Path) -> dict[str, list[str]]:
    """The ids in each folder, in order."""
    found: dict[str, list[str]] = {}
    for path in shard_paths(output / "documents"):
        found.setdefault(path.parent.name, []).extend(document.id for document in read_shard(path))
    return found


def expected(*folders: str) -> dict[str, list[str]]:
    """The ids that belong into each of `folders`, the others in `other`."""
    found: dict[str, list[str]] = {}
    for file in range(2):
        for number, language in enumerate(LANGUAGES):
            name = (language or "").lower().replace("../up", "%2e.%2fup")
            found.setdefault(name if name in folders else OTHER, []).append(f"{file}-{number}")
    return found


def test_each_document_is_in_the_folder_of_its_language_and_counted_there(inputs, tmp_path):
    report = build_corpus(make_recipe(inputs, tmp_path / "out", [], tasks=2, route={}))
    assert ids(tmp_path / "out") == expected("en", "de", "fr", "la", "%2e.%2fup")
    assert {entry["folder"]: entry["documents"] for entry in report["folders"]} == {
        name: len(documents) for name, documents in ids(tmp_path / "out").items()
    }
    assert sum(entry["characters"] for entry in report["folders"]) == report["characters"]
    assert all(entry["shards"] == 2 for entry in report["folders"]) and len(report["shards"]) == 12
    assert report["shards"] == [
        path.relative_to(tmp_path / "out/documents").as_posix() for path in shard_paths(tmp_path / "out/documents")
    ]  # fmt: skip
    assert not (tmp_path / "up").exists()


@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_the_commonest_values_get_a_folder_however_work_is_dealt_out(inputs, tmp_path, tasks):
    build_corpus(make_recipe(inputs, tmp_path / "out", [], tasks=tasks, route={"max_folders": 3}))
    assert ids(tmp_path / "out") == expected("en", "de", "fr")


def test_named_folders_are_all_there_are_and_need_no_counting(inputs, tmp_path):
    build_corpus(make_recipe(inputs, tmp_path / "out", [], tasks=2, route={"folders": ["LA", "de", "xx"]}))
    assert ids(tmp_path / "out") == expected("de", "la")
    assert not list((tmp_path / "out/work").glob("*count*"))


def test_a_mixed_corpus_keeps_its_order_and_splits_in_each_folder(inputs, tmp_path):
    steps = [{"mix": {"splits": "50,50"}}]
    build_corpus(make_recipe(inputs, tmp_path / "plain", steps, tasks=1))
    build_corpus(make_recipe(inputs, tmp_path / "routed", steps, tasks=1, route={"folders": ["en"]}))
    for plain in shard_paths(tmp_path / "plain" / "documents"):
        wanted = [d.id for d in read_shard(plain) if d.metadata["language"] == "en"]
        routed = tmp_path / "routed" / "documents" / "en" / plain.name
        assert [d.id for d in read_shard(routed)] == wanted if wanted else not routed.exists()


def test_killed_at_any_step_and_repeated_gives_the_same_bytes(inputs, tmp_path):
    options = {"tasks": 2, "route": {"max_folders": 2}}
    build_corpus(make_recipe(inputs, tmp_path / "whole", [], **options))
    whole = documents_of(tmp_path / "whole")
    recipe = make_recipe(inputs, tmp_path / "killed", [], **options)
    kills = 0
    while killed_build(os, "replace", kills, recipe):
        kills += 1
        for path in shard_paths(tmp_path / "killed" / "documents"):
            assert whole[path.relative_to(tmp_path / "killed").as_posix()] == path.read_bytes()
    assert kills > 6 and documents_of(tmp_path / "killed") == whole
    assert not list((tmp_path / "killed").rglob(".*.tmp"))


def test_other_commands_find_the_documents(inputs, tmp_path):
    build_corpus(make_recipe(inputs, tmp_path / "out", [], tasks=2, route={}))
    assert len(list(show_documents(tmp_path / "out"))) == 2 * len(LANGUAGES)
    german = list(show_documents(tmp_path / "out/documents/de"))
    assert {entry["metadata"]["language"] for entry in german} == {"de"}
    assert expand_inputs([tmp_path / "out/documents"]) == sorted(shard_paths(tmp_path / "out/documents"))
    assert len(expand_inputs([tmp_path / "out/documents/en"])) == 2


def test_a_key_with_very_many_values_is_refused(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(route, "MOST_VALUES", 4)
    with pytest.raises(UserError, match="route.by is `language`, which has over 4 values; choose a key"):
        build_corpus(make_recipe(inputs, tmp_path / "out", [], tasks=1, route={}))


@settings(max_examples=50)
@given(st.text(), st.text())
@example("..", ".")
@example("a/b", "a%2fb")
@example("C:\\x", "\x00")
@example("x" * 101, "\ud800")
@example("-rf", " ")
def test_names_of_folders_are_safe_and_different_values_stay_apart(first, second):
    for value in (first, second):
        name = folder_name(value)
        assert Path(name).name == name and name[0] not in ".-~" and len(name) <= 100
        assert name.isascii() and name.islower() | (not any(map(str.isalpha, name))) and name.isprintable()
    one, other = (folder_name(value) for value in (first, second))
    if one == other != OTHER:
        same = [value.strip().lower().encode("utf-8", "replace") for value in (first, second)]
        assert same[0] == same[1]
