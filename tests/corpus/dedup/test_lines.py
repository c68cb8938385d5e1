"""Repeated lines stay in the places that come first, and nowhere else."""

import random

import pytest
from datatrove.data import Document

from megalm.corpus.dedup import runs
from megalm.corpus.dedup.lines import DuplicateLines
from tests.corpus.dedup.pipeline import run_collective

FOOTER = "All rights reserved, Example Inc."


def cut(folder, documents, shards=1, **options) -> dict[str, str]:
    step = DuplicateLines(DuplicateLines.Settings.model_validate(options))
    return {document.id: document.text for document in run_collective(step, documents, folder, shards)}


def pages(count: int) -> list[Document]:
    return [
        Document(f"Page number {i} has this text\n}}\n{FOOTER}\n}}", f"page-{i}", metadata={"score": i})
        for i in range(count)
    ]


def test_a_line_stays_in_the_best_document_alone(tmp_path):
    texts = cut(tmp_path, pages(20), shards=3, score_key="score")
    assert texts.pop("page-19") == pages(20)[19].text
    assert texts == {f"page-{i}": f"Page number {i} has this text\n}}\n}}" for i in range(19)}


def test_case_punctuation_and_spaces_make_no_difference(tmp_path):
    documents = [*pages(1), Document("  ALL rights reserved -- example inc\nand something new here", "other")]
    texts = cut(tmp_path, documents, score_key="score")
    assert texts["other"] == "and something new here"


@pytest.mark.parametrize("max_copies", [1, 2, 5])
def test_lines_stay_in_as_many_places_as_allowed(tmp_path, max_copies):
    texts = cut(tmp_path, pages(9), shards=2, max_copies=max_copies)
    assert sum(text.count(FOOTER) for text in texts.values()) == max_copies


def test_a_line_repeated_within_a_document_stays_where_it_stands_first(tmp_path):
    texts = cut(tmp_path, [Document("one two three\nmiddle of the text\none two three", "x")])
    assert texts == {"x": "one two three\nmiddle of the text"}


def test_paragraphs_are_compared_as_a_whole(tmp_path):
    documents = [
        Document("first line of it\nsecond line\n\nown words here, a", "a", metadata={"score": 1}),
        Document("first line of it\nsecond line\n \n\nown words here, b\n\nfirst line of it", "b"),
    ]
    texts = cut(tmp_path, documents, unit="paragraph", score_key="score")
    assert texts["a"] == documents[0].text
    assert texts["b"] == "own words here, b\n\nfirst line of it"


def test_short_lines_stay_and_untouched_texts_keep_every_byte(tmp_path):
    documents = [Document("}\n\n \r\n}\n}", "a"), Document("}\n\n\n}", "b"), Document("", "c")]
    assert cut(tmp_path, documents, shards=2) == {document.id: document.text for document in documents}


def test_documents_with_nothing_left_are_removed(tmp_path):
    documents = [*pages(2), Document(f"{FOOTER}\n\n", "empty"), Document(f"{FOOTER}\nshort", "short")]
    assert "empty" not in cut(tmp_path / "1", documents, score_key="score")
    assert set(cut(tmp_path / "2", documents, score_key="score", min_characters=6)) == {"page-0", "page-1"}


def test_what_stays_does_not_depend_on_shards_order_or_pieces(tmp_path, monkeypatch):
    rng = random.Random(0)
    lines = [f"line with the number {i}" for i in range(60)]
    documents = [Document("\n".join(rng.choices(lines, k=8)), f"d{i}") for i in range(80)]
    expected = cut(tmp_path / "1", documents)
    rng.shuffle(documents)
    monkeypatch.setattr(runs, "RUN_BYTES", 1 << 11)
    assert cut(tmp_path / "5", documents, shards=5) == expected
    left = [line for text in expected.values() for line in text.split("\n")]
    assert sorted(left) == sorted(lines)
