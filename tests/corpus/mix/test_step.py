"""Budgets are kept, copies never lie in two splits, and neither choice nor order depends on shards."""

import itertools
import json
import random
from collections import Counter

import pytest
from datatrove.data import Document
from pydantic import ValidationError

from megalm.corpus.build import build_corpus
from megalm.corpus.dedup import runs
from megalm.corpus.mix import step as step_module
from megalm.corpus.mix.plan import read_plan
from megalm.corpus.mix.settings import Settings
from megalm.corpus.mix.step import Mix
from megalm.corpus.shards import read_shard, shard_paths
from megalm.dataset import build_dataset
from megalm.errors import UserError
from megalm.tokenizer import load_tokenizer, train_bpe
from tests.corpus.dedup.pipeline import run_collective
from tests.corpus.dedup.texts import random_text
from tests.corpus.recipes import make_inputs, make_recipe


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    rng = random.Random(3)
    return [
        Document(random_text(rng, rng.randint(1, 60)), f"{source}-{i}", metadata={"source": source})
        for source, count in (("web", 400), ("wiki", 100), ("books", 20))
        for i in range(count)
    ]


def mix(folder, documents, shards=1, times=1, **options) -> list[Document]:
    return run_collective(Mix(Settings.model_validate(options)), documents, folder, shards, times=times)


def characters(documents) -> Counter[str]:
    counts: Counter[str] = Counter()
    for document in documents:
        counts[document.metadata["source"]] += len(document.text)
    return counts


def largest(documents) -> int:
    return max(len(document.text) for document in documents)


def test_without_shares_every_document_is_there_once(tmp_path, documents):
    mixed = mix(tmp_path, documents, shards=3)
    assert sorted(d.id for d in mixed) == sorted(d.id for d in documents)
    assert [d.id for d in mixed] != [d.id for d in documents]


def test_budgets_are_kept_but_for_one_document(tmp_path, documents):
    shares = {
        "web": {"budget": 20_000},
        "wiki": {"budget": 100_000, "max_repeats": 4},
        "books": {"budget": 0},
    }
    mixed = mix(tmp_path, documents, shards=2, sources=shares)
    counts = characters(mixed)
    assert counts["books"] == 0
    for source, budget in (("web", 20_000), ("wiki", 100_000)):
        assert budget - largest(documents) < counts[source] <= budget
    repeats = Counter(d.id for d in mixed if d.metadata["source"] == "wiki")
    assert max(repeats.values()) - min(repeats.values()) <= 1
    assert len(repeats) == 100


def test_weights_share_the_total(tmp_path, documents):
    shares = {"web": {"weight": 3}, "wiki": {"weight": 1}, "books": {"budget": 1000}}
    counts = characters(mix(tmp_path, documents, sources=shares, total=60_000))
    assert 0 <= 45_000 - counts["web"] < largest(documents)
    assert 0 <= 15_000 - counts["wiki"] < largest(documents)


def test_without_a_total_the_scarcest_source_gives_all_it_may(tmp_path, documents):
    available = characters(documents)
    shares = {"web": {"weight": 1}, "wiki": {"weight": 1}, "books": {"weight": 1, "max_repeats": 2}}
    counts = characters(mix(tmp_path, documents, sources=shares))
    assert 0 <= 2 * available["books"] - counts["books"] < largest(documents)
    assert abs(counts["web"] - counts["books"]) < 2 * largest(documents)


def test_no_document_is_repeated_more_often_than_allowed(tmp_path, documents):
    shares = {"web": {"budget": 0}, "wiki": {"budget": 0}, "books": {"budget": 10**9, "max_repeats": 2.5}}
    mixed = mix(tmp_path, documents, sources=shares)
    assert max(Counter(d.id for d in mixed).values()) == 3
    counts, available = characters(mixed), characters(documents)
    assert 0 <= 2.5 * available["books"] - counts["books"] < largest(documents)
    plan = read_plan(tmp_path / "work").sources["books"]
    assert (plan.wanted, plan.planned) == (10**9, counts["books"])


def test_repeated_documents_are_not_side_by_side(tmp_path, documents):
    shares = {"web": {"budget": 0}, "wiki": {"budget": 200, "max_repeats": 2}, "books": {"budget": 0}}
    mixed = [d.id for d in mix(tmp_path, documents, sources=shares, unit="documents")]
    assert len(mixed) == 200
    assert sum(a == b for a, b in itertools.pairwise(mixed)) < 10


def test_documents_can_be_counted_instead(tmp_path, documents):
    shares = {"web": {"weight": 2}, "wiki": {"weight": 1}, "books": {"budget": 7}}
    mixed = mix(tmp_path, documents, sources=shares, unit="documents", total=90)
    assert Counter(d.metadata["source"] for d in mixed) == {"web": 60, "wiki": 30, "books": 7}


def test_tokens_are_those_of_the_tokenizer(tmp_path, documents):
    (tmp_path / "text.txt").write_text("\n".join(d.text for d in documents[:50]))
    train_bpe([tmp_path / "text.txt"], 300, tmp_path / "tokenizer")
    shares = {"web": {"budget": 5000}, "wiki": {"budget": 0}, "books": {"budget": 0}}
    options = {"sources": shares, "unit": "tokens", "tokenizer": str(tmp_path / "tokenizer")}
    mixed = mix(tmp_path, documents, **options)
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    tokens = sum(len(tokenizer.encode(d.text)) for d in mixed)
    assert 5000 - 3000 < tokens <= 5000 and len(mixed) > 1


def test_bytes_do_not_depend_on_shards_order_or_pieces(tmp_path, documents, monkeypatch):
    options = {
        "sources": {
            "web": {"budget": 30_000},
            "wiki": {"weight": 1, "max_repeats": 3},
            "books": {"budget": 9000},
        },
        "splits": "80,15,5",
        "shard_bytes": 10_000,
        "total": 70_000,
    }
    mix(tmp_path / "1", documents, **options)
    expected = {path.name: path.read_bytes() for path in shard_paths(tmp_path / "1" / "target")}
    assert len(expected) > 10
    shuffled = random.Random(0).sample(documents, len(documents))
    mix(tmp_path / "4", shuffled, shards=4, times=2, **options)
    assert {path.name: path.read_bytes() for path in shard_paths(tmp_path / "4" / "target")} == expected
    monkeypatch.setattr(runs, "RUN_BYTES", 1 << 10)
    monkeypatch.setattr(step_module, "RUN_BYTES", 1 << 11)
    mix(tmp_path / "2", shuffled, shards=2, **options)
    assert {path.name: path.read_bytes() for path in shard_paths(tmp_path / "2" / "target")} == expected


def test_the_seed_changes_choice_and_order_but_not_the_split(tmp_path, documents):
    options = {"splits": "70,30", "sources": {s: {"budget": 5000} for s in ("web", "wiki", "books")}}
    found = []
    for seed in (0, 1):
        mix(tmp_path / str(seed), documents, seed=seed, **options)
        paths = shard_paths(tmp_path / str(seed) / "target")
        found.append({d.id: path.name[:5] for path in paths for d in read_shard(path)})
    first, second = found
    assert set(first) != set(second)
    both = set(first) & set(second)
    assert both and all(first[id] == second[id] for id in both)


def test_copies_of_a_text_lie_in_one_split(tmp_path, documents):
    twice = documents + [Document(d.text, f"copy of {d.id}", metadata=d.metadata) for d in documents]
    mix(tmp_path, twice, shards=3, splits="50,50")
    texts = {}
    for path in shard_paths(tmp_path / "target"):
        for document in read_shard(path):
            texts.setdefault(document.text, set()).add(path.name[:5])
    assert all(len(splits) == 1 for splits in texts.values())
    train = sum("train" in splits for splits in texts.values())
    assert 0.4 < train / len(texts) < 0.6


def test_the_split_is_that_of_a_dataset_build(tmp_path, documents):
    (tmp_path / "text.txt").write_text("\n".join(d.text for d in documents[:50]))
    train_bpe([tmp_path / "text.txt"], 300, tmp_path / "tokenizer")
    lines = [json.dumps({"text": d.text}) for d in documents]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    records = build_dataset(
        [tmp_path / "all.jsonl"], tmp_path / "tokenizer", tmp_path / "set", workers=1, splits="60,30,10"
    )
    mix(tmp_path, documents, splits="60,30,10")
    for name, record in records.items():
        paths = [path for path in shard_paths(tmp_path / "target") if path.name.startswith(name)]
        assert sum(1 for path in paths for _ in read_shard(path)) == record["documents"] > 0


def test_a_source_without_a_share_is_a_users_mistake(tmp_path, documents):
    with pytest.raises(UserError, match="books-0 is of source `books`, which has no share"):
        mix(tmp_path, documents, sources={"web": {"weight": 1}, "wiki": {"weight": 1}})


def test_empty_texts_and_missing_sources_are_kept(tmp_path):
    assert len(mix(tmp_path, [Document("", "a"), Document("", "b")], shards=3)) == 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sources": {"web": {}}}, "give either `weight` or `budget`"),
        ({"sources": {"web": {"weight": 1, "budget": 2}}}, "give either `weight` or `budget`"),
        ({"splits": "a,b"}, "give the shares of train, valid and test"),
        ({"unit": "tokens"}, "give the `tokenizer`"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        Settings.model_validate(options)


def test_a_source_that_steps_have_emptied_leaves_the_others_their_weights(tmp_path, documents):
    shares = {"web": {"weight": 1}, "wiki": {"weight": 1}, "books": {"weight": 2}, "gone": {"weight": 9}}
    kept = [document for document in documents if document.metadata["source"] != "books"]
    counts = Counter(d.metadata["source"] for d in mix(tmp_path, kept, unit="documents", sources=shares))
    assert counts == {"web": 100, "wiki": 100}


def test_what_is_beyond_a_budget_is_written_where_removed_documents_are_kept(tmp_path):
    shares = {"jsonl": {"budget": 5}}
    steps = [{"mix": {"unit": "documents", "sources": shares}}]
    recipe = make_recipe(make_inputs(tmp_path / "in"), tmp_path / "out", steps, keep_removed=True)
    report = build_corpus(recipe)
    removed = [d for path in (tmp_path / "out" / "removed").rglob("*.zst") for d in read_shard(path)]
    assert report["documents"] == 5 and len({d.id for d in removed}) == 55
    assert {d.metadata["reason"] for d in removed} == {"mix.over_budget"}
    counters = report["steps"][-1]["counters"]
    assert counters == {"jsonl: documents asked for": 5, "jsonl: documents taken": 5}
