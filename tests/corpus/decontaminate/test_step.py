"""Planted items of benchmarks are found, near-misses and short texts are not, and what was hit is listed."""

import gzip
import json
import random

import pytest
from datatrove.data import Document

from megalm.corpus.decontaminate.benchmarks import Benchmark, read_items
from megalm.corpus.decontaminate.step import Decontaminate
from megalm.errors import UserError
from tests.corpus.dedup.texts import random_text

RNG = random.Random(0)
QUESTIONS = [random_text(RNG, 20 + i) for i in range(10)]


@pytest.fixture
def benchmark(tmp_path):
    path = tmp_path / "quiz.jsonl"
    path.write_text("".join(json.dumps({"question": q, "answer": "short one"}) + "\n" for q in QUESTIONS))
    return path


def run(benchmark, documents, **options):
    """What stays, and what the step counted."""
    entry = {"path": str(benchmark), "keys": ["question", "answer"]}
    step = Decontaminate(Decontaminate.Settings.model_validate({"benchmarks": [entry], **options}))
    return list(step.run(iter(documents), 0, 1)), step.tally


def page(inside: str, around: int = 300) -> str:
    return f"{random_text(RNG, around)} {inside} {random_text(RNG, around)}"


def test_planted_items_are_removed_and_others_stay(benchmark):
    planted = [Document(page(question), f"hit-{i}") for i, question in enumerate(QUESTIONS)]
    clean = [Document(page(""), f"clean-{i}") for i in range(50)]
    kept, tally = run(benchmark, planted + clean)
    assert [document.id for document in kept] == [document.id for document in clean]
    assert tally.removed == {"decontaminate.hit": 10}
    assert tally.histograms["items"] == {f"quiz#{i}": 1 for i in range(10)}
    assert tally.counters == {"documents with items of quiz": 10}


def test_case_and_punctuation_hide_nothing(benchmark):
    changed = QUESTIONS[3].upper().replace(" ", ",\n-- ")
    assert run(benchmark, [Document(page(changed), "x")])[0] == []


@pytest.mark.parametrize("shared, hit", [(12, False), (13, True)])
def test_thirteen_words_in_a_row_are_a_hit_and_twelve_are_not(benchmark, shared, hit):
    part = " ".join(QUESTIONS[0].split()[3 : 3 + shared])
    assert (run(benchmark, [Document(page(part), "x")])[0] == []) == hit


def test_one_changed_word_in_every_twelve_is_a_near_miss(benchmark):
    words = QUESTIONS[9].split()
    for i in range(6, len(words), 12):
        words[i] = "changed"
    kept, _ = run(benchmark, [Document(page(" ".join(words)), "x")])
    assert len(kept) == 1 and not kept[0].metadata
    assert run(benchmark, [Document(page(" ".join(words)), "x")], ngram=8)[0] == []


def test_words_in_another_order_are_no_hit(benchmark):
    turned = " ".join(reversed(QUESTIONS[0].split()))
    assert len(run(benchmark, [Document(page(turned), "x")])[0]) == 1


@pytest.mark.parametrize("words, hit", [(7, False), (8, True), (12, True)])
def test_short_items_are_looked_for_as_a_whole_from_eight_words(tmp_path, words, hit):
    path = tmp_path / "short.txt"
    item = random_text(RNG, words)
    path.write_text(item + "\n")
    documents = [Document(page(item), "whole"), Document(page(item.rsplit(" ", 1)[0]), "part")]
    kept, tally = run(path, documents)
    assert [document.id for document in kept] == (["part"] if hit else ["whole", "part"])
    assert tally.counters.get("items not looked for (too short, or a template)", 0) == (0 if hit else 1)


def test_several_ngrams_can_be_asked_for(benchmark):
    words = QUESTIONS[0].split()
    documents = [Document(page(" ".join(words[:15])), "three"), Document(page(" ".join(words[:16])), "four")]
    kept, _ = run(benchmark, documents, min_ngrams=4)
    assert [document.id for document in kept] == ["three"]
    repeated = Document(page(" ".join(words[:13] * 4)), "one ngram and its joints")
    assert len(run(benchmark, [repeated], min_ngrams=4)[0]) == 1


def test_an_item_with_fewer_ngrams_than_asked_for_is_found_whole(tmp_path):
    path = tmp_path / "few.txt"
    path.write_text(item := random_text(RNG, 14))
    assert run(path, [Document(page(item), "x")], min_ngrams=5)[0] == []


def test_a_template_of_many_items_is_no_hit(tmp_path):
    template = random_text(RNG, 15)
    path = tmp_path / "template.txt"
    path.write_text("\n".join(f"{template} {random_text(RNG, 20)}" for _ in range(11)))
    documents = [Document(page(template), "x")]
    assert len(run(path, documents, max_items=10)[0]) == 1
    assert run(path, documents, max_items=11)[0] == []


def test_cutting_leaves_the_text_but_for_the_hit_and_its_margin(benchmark):
    before, after = random_text(RNG, 100), random_text(RNG, 100)
    text = f"{before} {QUESTIONS[2]} {after}"
    kept, tally = run(benchmark, [Document(text, "x")], action="cut", margin=50)
    begin, end = len(before) + 1 - 50, len(before) + 1 + len(QUESTIONS[2]) + 50
    assert kept[0].text == f"{text[:begin].strip()}\n\n{text[end:].strip()}"
    assert kept[0].metadata == {"contamination": ["quiz#2"]}
    assert tally.counters["hits cut out"] == 1
    assert run(benchmark, kept)[1].removed == {}


def test_short_pieces_go_and_documents_of_many_cuts_too(benchmark):
    kept, _ = run(
        benchmark, [Document(f"tiny {QUESTIONS[0]} {random_text(RNG, 90)}", "x")], action="cut", margin=0
    )
    assert kept[0].text.startswith("w") and "tiny" not in kept[0].text
    _, tally = run(benchmark, [Document(f"tiny {QUESTIONS[0]} bits", "x")], action="cut")
    assert tally.removed == {"decontaminate.nothing_left": 1}
    often = " ".join(f"{question} {random_text(RNG, 90)}" for question in QUESTIONS[:4])
    assert len(run(benchmark, [Document(often, "x")], action="cut", max_cuts=4)[0]) == 1
    _, tally = run(benchmark, [Document(often, "x")], action="cut", max_cuts=3)
    assert tally.removed == {"decontaminate.too_many_hits": 1}


def test_marking_changes_nothing_but_metadata(benchmark):
    text = page(f"{QUESTIONS[5]} {QUESTIONS[1]}")
    kept, tally = run(benchmark, [Document(text, "x")], action="mark")
    assert kept[0].text == text
    assert kept[0].metadata == {"contamination": ["quiz#1", "quiz#5"]}
    assert tally.counters["documents marked"] == 1


def test_hits_are_listed_with_their_place(benchmark, tmp_path):
    text = f"some words before {QUESTIONS[7]} and after"
    run(benchmark, [Document("nothing", "a"), Document(text, "b")], hits=str(tmp_path / "hits"))
    (line,) = [json.loads(line) for line in (tmp_path / "hits" / "00000.jsonl").open()]
    assert line == {
        "document": "b",
        "item": "quiz#7",
        "ngrams": 27 - 13 + 1,
        "begin": 18,
        "end": 18 + len(QUESTIONS[7]),
        "text": QUESTIONS[7],
        "action": "drop",
    }


def test_files_of_all_kinds_give_the_same_items(tmp_path):
    rows = [{"q": 'first, "quoted"\u2028question', "n": 1}, {"q": "sécond\nlines", "n": 2}]
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8"
    )
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.csv").write_text(
        'n,q\n1,"first, ""quoted""\u2028question"\n2,"sécond\nlines"\n', encoding="utf-8"
    )
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    for name in ("a.jsonl", "a.json", "a.csv", "a.jsonl.gz"):
        items = list(read_items(Benchmark(path=tmp_path / name, keys=["q"], name="b")))
        assert [(item.label, item.texts) for item in items] == [
            ("b#0", [rows[0]["q"]]),
            ("b#1", ["sécond\nlines"]),
        ]


def test_lists_under_a_key_are_texts_of_their_own(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"choices": ["one", {"text": "two"}, 3]}')
    (item,) = read_items(Benchmark(path=tmp_path / "a.jsonl", keys=["choices"]))
    assert item.texts == ["one", "two"]


@pytest.mark.parametrize(
    "name, content, keys, message",
    [
        ("a.jsonl", "{}", [], "needs `keys`"),
        ("a.jsonl", '{"q": "x"}', ["question"], "has no `question` .found: q"),
        ("a.jsonl", "{", ["q"], "cannot be read as .jsonl"),
        ("a.jsonl", "[1]", ["q"], "is no object but list"),
        ("a.parquet", "", ["q"], "of no known kind"),
        ("missing.jsonl", None, ["q"], "does not exist"),
    ],
)
def test_files_that_cannot_be_read_are_users_mistakes(tmp_path, name, content, keys, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        list(read_items(Benchmark(path=tmp_path / name, keys=keys)))
