"""Copies are found as often as they should be, and which document stays does not depend on shards or workers."""

import itertools
import json
import math
import random

import pytest
from datatrove.data import Document

from megalm.corpus.dedup import catalog, pairs, runs
from megalm.corpus.dedup.lsh import Bands
from megalm.corpus.dedup.steps import ExactDuplicates, NearDuplicates
from megalm.corpus.recipe import parse_recipe
from megalm.errors import UserError
from tests.corpus.dedup.pipeline import run_collective
from tests.corpus.dedup.texts import pair_of_similarity, random_text

LEVELS = [(50, 25), (70, 15), (80, 10), (90, 5)]  # similarity 0.5, 0.7, 0.8, 0.9 of sets of words
PAIRS = 250


@pytest.fixture(scope="module")
def planted() -> list[Document]:
    """Pairs of each similarity, and as many documents that are like no other, in random order."""
    rng = random.Random(7)
    documents = [Document(random_text(rng, 100), f"single-{i}") for i in range(PAIRS)]
    for common, different in LEVELS:
        for i in range(PAIRS):
            for side, text in zip("ab", pair_of_similarity(rng, common, different), strict=True):
                documents.append(Document(text, f"{common}-{i}-{side}"))
    rng.shuffle(documents)
    return documents


def near(**options) -> NearDuplicates:
    return NearDuplicates(NearDuplicates.Settings.model_validate({"ngram": 1, **options}))


def exact(**options) -> ExactDuplicates:
    return ExactDuplicates(ExactDuplicates.Settings.model_validate(options))


def ids(documents) -> list[str]:
    return sorted(document.id for document in documents)


def found_pairs(survivors, common: int) -> int:
    """How many of the planted pairs lost a document."""
    alive = set(ids(survivors))
    return sum(not {f"{common}-{i}-a", f"{common}-{i}-b"} <= alive for i in range(PAIRS))


def test_planted_pairs_are_found_as_often_as_the_s_curve_says(planted, tmp_path):
    survivors = run_collective(near(bands=14, rows=8), planted, tmp_path, shards=3)
    for common, different in LEVELS:
        expected = Bands(14, 8).probability(common / (common + 2 * different))
        found = found_pairs(survivors, common)
        assert abs(found / PAIRS - expected) <= 4 * math.sqrt(expected * (1 - expected) / PAIRS) + 1 / PAIRS
    assert sum(name.startswith("single") for name in ids(survivors)) == PAIRS


def test_verification_removes_no_pair_below_the_threshold_and_all_candidates_above(planted, tmp_path):
    loose = run_collective(near(bands=20, rows=4), planted, tmp_path / "loose", shards=2)
    options = {"bands": 20, "rows": 4, "verify": True, "threshold": 0.8}
    verified = run_collective(near(**options), planted, tmp_path / "verified", shards=2)
    for common in (50, 70):
        assert found_pairs(loose, common) > 0
        assert found_pairs(verified, common) == 0
    for common in (80, 90):
        assert found_pairs(verified, common) == found_pairs(loose, common) > 0.99 * PAIRS


@pytest.mark.parametrize("verify", [False, True])
def test_survivors_do_not_depend_on_shards_order_or_pieces(planted, tmp_path, monkeypatch, verify):
    clusters = [
        Document(document.text.rsplit(" ", cut)[0], f"{document.id}-{cut}", metadata={"score": cut})
        for document in planted[:40]
        for cut in range(1, 6)
    ]
    documents = planted[:400] + clusters
    step = near(threshold=0.8, verify=verify)
    expected = run_collective(step, documents, tmp_path / "1", shards=1)
    assert 400 * 0.5 < len(expected) < 440
    random.Random(1).shuffle(documents)
    assert ids(run_collective(step, documents, tmp_path / "5", shards=5)) == ids(expected)
    monkeypatch.setattr(runs, "RUN_BYTES", 1 << 12)
    many = run_collective(step, documents, tmp_path / "3", shards=3)
    assert ids(many) == ids(expected)
    copies = {document.id: document.metadata.get("copies") for document in expected}
    assert {document.id: document.metadata.get("copies") for document in many} == copies


def test_which_pairs_are_verified_does_not_depend_on_shards(tmp_path, monkeypatch):
    """Of many documents under one key only some pairs are looked at: those must be the same ones everywhere."""
    monkeypatch.setattr(pairs, "WINDOW", 2)
    rng = random.Random(5)
    bases = [random_text(rng, 40).split() for _ in range(10)]
    documents = [
        Document(" ".join(word if rng.random() < 0.85 else "other" for word in base), f"{i}-{k}")
        for i, base in enumerate(bases)
        for k in range(30)
    ]
    step = near(bands=4, rows=1, threshold=0.75, verify=True)
    expected = run_collective(step, documents, tmp_path / "1")
    assert 10 < len(expected) < 200
    for shards in (2, 5):
        rng.shuffle(documents)
        assert ids(run_collective(step, documents, tmp_path / str(shards), shards)) == ids(expected)


def test_survivors_do_not_depend_on_the_number_of_workers(planted, tmp_path):
    found = [
        run_collective(
            near(threshold=0.8, verify=True), planted[:300], tmp_path / str(n), shards=4, workers=n
        )
        for n in (1, 3)
    ]
    assert ids(found[0]) == ids(found[1])
    assert len(found[0]) < 300


def test_tasks_that_run_again_after_a_kill_change_nothing(planted, tmp_path):
    options = {"threshold": 0.8, "verify": True, "save_index": str(tmp_path / "index")}
    once = run_collective(near(**options), planted[:300], tmp_path, shards=3)
    index = {path: path.read_bytes() for path in (tmp_path / "index").rglob("*.*")}
    again = run_collective(near(**options), planted[:300], tmp_path, shards=3, times=2)
    assert [(d.id, d.metadata) for d in again] == [(d.id, d.metadata) for d in once]
    assert {path: path.read_bytes() for path in (tmp_path / "index").rglob("*.*")} == index


def test_one_of_each_cluster_stays(planted, tmp_path):
    survivors = run_collective(near(threshold=0.8, verify=True), planted, tmp_path, shards=3)
    alive = set(ids(survivors))
    for common, _ in LEVELS:
        for i in range(PAIRS):
            assert {f"{common}-{i}-a", f"{common}-{i}-b"} & alive


COPIES = [
    Document("Hello, World!", "web-1", metadata={"source": "web", "score": 0.1}),
    Document("hello world", "wiki-1", metadata={"source": "wiki", "score": 0.2}),
    Document("HELLO... world", "wiki-2", metadata={"source": "wiki", "score": 0.9}),
    Document("hello  world?", "book-1", metadata={"source": "book", "score": 5}),
    Document("something else", "book-2", metadata={"source": "book"}),
]


@pytest.mark.parametrize(
    "options, survivor",
    [
        ({"prefer_sources": ["wiki", "book"], "score_key": "score"}, "wiki-2"),
        ({"prefer_sources": ["web"]}, "web-1"),
        ({"score_key": "score"}, "book-1"),
    ],
)
def test_the_preferred_copy_stays_wherever_it_stands(tmp_path, options, survivor):
    for number, order in enumerate(itertools.islice(itertools.permutations(COPIES), 0, 120, 23)):
        kept = run_collective(exact(**options), order, tmp_path / str(number), shards=1 + number % 3)
        assert ids(kept) == sorted([survivor, "book-2"])
        assert {document.id: document.metadata.get("copies") for document in kept} == {
            survivor: 4,
            "book-2": None,
        }


def test_of_equal_texts_the_same_one_stays_in_any_sharding(tmp_path):
    documents = [Document(f"text {i % 20}", f"id-{i}") for i in range(100)]
    expected = ids(run_collective(exact(), documents, tmp_path / "1"))
    assert len(expected) == 20
    assert ids(run_collective(exact(), documents[::-1], tmp_path / "4", shards=4)) == expected


def test_without_normalization_every_character_counts(tmp_path):
    again = [*COPIES, Document("hello world", "wiki-3")]
    kept = run_collective(exact(normalize=False, score_key="score"), again, tmp_path)
    assert ids(kept) == ["book-1", "book-2", "web-1", "wiki-1", "wiki-2"]


def test_marked_copies_stay_and_name_the_survivor(tmp_path):
    step = exact(mark=True, score_key="score", matches=str(tmp_path / "matches"))
    kept = run_collective(step, COPIES, tmp_path, shards=2)
    marks = {document.id: document.metadata.get("duplicate_of") for document in kept}
    assert marks == {
        "web-1": "book-1",
        "wiki-1": "book-1",
        "wiki-2": "book-1",
        "book-1": None,
        "book-2": None,
    }
    lines = [json.loads(line) for path in (tmp_path / "matches").iterdir() for line in path.open()]
    assert {line["id"]: line["duplicate_of"] for line in lines} == {
        id: survivor for id, survivor in marks.items() if survivor
    }


@pytest.mark.parametrize("verify", [False, True])
def test_copies_of_an_index_are_removed_and_name_what_they_match(planted, tmp_path, verify):
    first = [document for document in planted if document.id.endswith("-a")]
    second = [document for document in planted if not document.id.endswith("-a")]
    index, matches = tmp_path / "index", tmp_path / "matches"
    options = {"threshold": 0.8, "verify": verify}
    kept_first = run_collective(near(save_index=str(index), **options), first, tmp_path / "1", shards=3)
    kept = run_collective(
        near(index=[str(index)], matches=str(matches), **options), second, tmp_path / "2", shards=2
    )
    both = run_collective(near(**options), planted, tmp_path / "both", shards=2)
    assert len(kept_first) + len(kept) == len(both)
    lines = [json.loads(line) for path in matches.iterdir() for line in path.open()]
    assert len(lines) == len(second) - len(kept) > PAIRS
    for line in lines:
        assert line["in_index"]
        assert line["duplicate_of"] == line["id"].removesuffix("b") + "a"


def test_only_what_stayed_is_in_an_index(tmp_path):
    """b is removed as a copy of a; c is like b alone, and so is new."""
    rng = random.Random(0)
    a = random_text(rng, 100).split()
    b = a[:90] + random_text(rng, 10).split()
    c = random_text(rng, 10).split() + b[10:]
    first = [Document(" ".join(a), "a", metadata={"score": 1}), Document(" ".join(b), "b")]
    options = {"threshold": 0.8, "recall": 0.9999, "verify": True}
    index = tmp_path / "index"
    step = near(save_index=str(index), score_key="score", **options)
    assert ids(run_collective(step, first, tmp_path / "1", shards=2)) == ["a"]
    new = [Document(" ".join(c), "c"), Document(" ".join(a[5:]), "d")]
    assert ids(run_collective(near(index=[str(index)], **options), new, tmp_path / "2")) == ["c"]


def test_two_indexes_are_told_apart(tmp_path):
    for name in ("one", "two"):
        text = [Document(f"text of {name}", name)]
        run_collective(exact(save_index=str(tmp_path / f"index-{name}")), text, tmp_path / name)
    step = exact(index=[str(tmp_path / f"index-{name}") for name in ("one", "two")], mark=True)
    new = [Document("text of two", "a"), Document("text of one", "b"), Document("text of three", "c")]
    kept = run_collective(step, new, tmp_path / "new", shards=2)
    assert {d.id: d.metadata.get("duplicate_of") for d in kept} == {"a": "two", "b": "one", "c": None}


def test_indexes_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(UserError, match="is no complete index"):
        run_collective(exact(index=[str(tmp_path)]), COPIES, tmp_path / "1")
    run_collective(near(save_index=str(tmp_path / "index")), COPIES, tmp_path / "2")
    with pytest.raises(UserError, match="other settings"):
        run_collective(near(index=[str(tmp_path / "index")], seed=3), COPIES, tmp_path / "3")
    with pytest.raises(UserError, match="without `verify`"):
        run_collective(near(index=[str(tmp_path / "index")], verify=True), COPIES, tmp_path / "4")
    with pytest.raises(UserError, match="holds files that another build made"):
        run_collective(near(save_index=str(tmp_path / "index")), COPIES, tmp_path / "5")


def test_many_equal_documents_are_one_cluster_with_verification(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "WINDOW", 3)
    documents = [Document("the same words again and again", f"copy-{i}") for i in range(50)]
    kept = run_collective(near(verify=True), documents, tmp_path, shards=3)
    assert len(kept) == 1 and kept[0].metadata["copies"] == 50


def test_empty_shards_and_empty_texts_pass(tmp_path):
    documents = [Document("", "a"), Document("", "b"), Document("...", "c")]
    assert ids(run_collective(near(verify=True), documents, tmp_path / "1", shards=5)) == ["a", "b", "c"]
    assert run_collective(exact(), [], tmp_path / "2", shards=2) == []


def test_equal_ids_of_different_texts_do_no_harm(tmp_path):
    documents = [Document("one text", "x"), Document("one text", "x"), Document("another", "x")]
    kept = run_collective(exact(), documents, tmp_path, shards=3)
    assert sorted(document.text for document in kept) == ["another", "one text"]


def test_ids_and_scores_of_any_kind_are_kept(tmp_path):
    odd = [
        Document("same", "\ud800 id", metadata={"score": "high"}),
        Document("same", "ü", metadata={"score": 1}),
    ]
    kept = run_collective(exact(score_key="score", mark=True), odd, tmp_path, shards=2)
    assert [d.metadata.get("duplicate_of") for d in kept] == ["ü", None]


def test_wrong_options_are_users_mistakes():
    def recipe(options):
        parse_recipe(
            {
                "output": "o",
                "sources": [{"kind": "text", "path": "p"}],
                "steps": [{"near_duplicates": options}],
            }
        )

    with pytest.raises(UserError, match="give `bands` and `rows` together"):
        recipe({"bands": 3})
    with pytest.raises(UserError, match="treshold.*threshold"):
        recipe({"treshold": 0.5})
    with pytest.raises(UserError, match="threshold"):
        recipe({"threshold": 1.5})


def test_numbers_of_documents_leave_room_for_all_indexes():
    last = catalog.index_mark(catalog.MAX_INDEXES - 1) | catalog.number_of((1 << catalog.SHARD_BITS) - 1, 0)
    assert last < 1 << 64
    assert catalog.index_mark(0) == catalog.KNOWN
