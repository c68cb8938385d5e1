"""Reports on tokenizers: counts by hand and by an independent count, groups, samples, use of the vocabulary."""

import gzip
import json
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from megalm.errors import UserError
from megalm.tokenizer import load_tokenizer, report
from megalm.tokenizer.report import NO_GROUP, OTHER_GROUPS, measure_corpus
from megalm.tokenizer.vocabulary import describe, kind, read_vocabulary, readable, unknown_id
from tests.tokenizer.small_tokenizers import KINDS, SPECIAL_TOKENS, save

DOCUMENTS = [
    {"text": "The sea is wide, of course.", "metadata": {"language": "en", "year": 1}},
    {"text": "東京は 😀", "metadata": {"language": "ja", "year": 1}},
    {"text": "A poem about 😀 the sea", "metadata": {"language": "en"}},
    {"text": "", "metadata": None},
]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return {kind: load_tokenizer(save(tmp_path_factory.mktemp(kind), kind)) for kind in KINDS}


def write(path: Path, documents: list[dict]) -> Path:
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_the_documents_one_by_one(tokenizers, tmp_path, kind):
    tokenizer = tokenizers[kind]
    [found] = measure_corpus(
        [tokenizer], [write(tmp_path / "a.jsonl", DOCUMENTS)], by=["metadata.language", "metadata.year"]
    )
    texts = [document["text"] for document in DOCUMENTS]
    ids = [tokenizer.encode(text) for text in texts]
    unknown = tokenizer.token_id("<unk>")
    total = found.total
    assert (total.documents, total.bytes, total.characters) == (
        4,
        sum(len(t.encode()) for t in texts),
        sum(map(len, texts)),
    )
    assert (total.words, total.unspaced, total.tokens) == (14, 3, sum(map(len, ids)))
    assert total.unknown == sum(row.count(unknown) for row in ids)
    assert {name: measure.tokens for name, measure in found.groups["metadata.language"].items()} == {
        "en": len(ids[0]) + len(ids[2]),
        "ja": len(ids[1]),
        NO_GROUP: 0,
    }
    assert {name: measure.documents for name, measure in found.groups["metadata.year"].items()} == {
        "1": 2,
        NO_GROUP: 2,
    }
    assert found.groups["metadata.language"]["ja"].unknown == ids[1].count(unknown)
    assert dict(enumerate(found.used_V)) == {
        i: sum(row.count(i) for row in ids) for i in range(tokenizer.vocab_size)
    }


def test_ratios_follow_from_the_counts(tokenizers, tmp_path):
    [found] = measure_corpus(
        [tokenizers["wordpiece"]], [write(tmp_path / "a.jsonl", DOCUMENTS)], by=["metadata.language"]
    )
    summary = found.summary()
    english, japanese = (summary["groups"]["metadata.language"][name] for name in ("en", "ja"))
    assert english["bytes_per_token"] == english["bytes"] / english["tokens"]
    assert english["characters_per_token"] == english["characters"] / english["tokens"]
    assert (
        english["words_per_token"] == 11 / english["tokens"]
        and english["fertility"] == english["tokens"] / 11
    )
    assert not english["words_are_characters"] and japanese["words_are_characters"]
    assert japanese["words"] == 3 and japanese["unknown_rate"] == japanese["unknown"] / japanese["tokens"] > 0
    empty = summary["groups"]["metadata.language"][NO_GROUP]
    assert empty["documents"] == 1 and empty["bytes_per_token"] is None and empty["fertility"] is None


def test_groups_are_listed_by_size(tokenizers, tmp_path):
    [found] = measure_corpus(
        [tokenizers["wordpiece"]], [write(tmp_path / "a.jsonl", DOCUMENTS)], by=["metadata.language"]
    )
    assert list(found.summary()["groups"]["metadata.language"]) == ["en", "ja", NO_GROUP]


def test_byte_pieces_are_bytes_of_the_fallback_or_parts_of_characters(tokenizers, tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "sea 🦜"}])
    fallback, level, words = measure_corpus(
        [tokenizers[k] for k in ("metaspace", "byte-level", "wordpiece")], [path]
    )
    assert fallback.total.byte_pieces == 4
    assert (
        level.total.byte_pieces
        == sum(
            len(tokenizers["byte-level"].token_bytes(i)) < 4 for i in tokenizers["byte-level"].encode("🦜")
        )
        > 1
    )
    assert words.total.byte_pieces == 0


def test_use_of_the_vocabulary(tokenizers, tmp_path):
    tokenizer = tokenizers["byte-level"]
    [found] = measure_corpus([tokenizer], [write(tmp_path / "a.jsonl", DOCUMENTS)])
    counts = Counter(i for document in DOCUMENTS for i in tokenizer.encode(document["text"]))
    summary = found.summary(examples=5)
    assert summary["unused_pieces"] == tokenizer.vocab_size - len(SPECIAL_TOKENS) - len(counts)
    assert not {piece["id"] for piece in summary["unused_examples"]} & set(counts)
    frequent = summary["most_frequent"]
    assert [piece["count"] for piece in frequent] == [n for _, n in counts.most_common(5)]
    assert all(counts[piece["id"]] == piece["count"] for piece in frequent)
    longest = [
        len(tokenizer.token_bytes(i))
        for i in sorted(counts, key=lambda i: -len(tokenizer.token_bytes(i)))[:5]
    ]
    assert [piece["bytes"] for piece in summary["longest_used"]] == longest
    unused = [i for i in range(len(SPECIAL_TOKENS), tokenizer.vocab_size) if i not in counts]
    assert [piece["bytes"] for piece in summary["unused_examples"]] == sorted(
        (len(tokenizer.token_bytes(i)) for i in unused), reverse=True
    )[:5]


def test_several_tokenizers_and_files_of_all_kinds_are_read_in_one_pass(tokenizers, tmp_path):
    write(tmp_path / "a.jsonl", DOCUMENTS)
    (tmp_path / "b.txt").write_text("The sea\n\nis blue\n")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"wide"))
    pair = [tokenizers["wordpiece"], tokenizers["metaspace"]]
    found = measure_corpus(pair, [tmp_path], by=["metadata.language"], sample_by="paragraph")
    assert [one.total.documents for one in found] == [7, 7]
    assert found[0].groups["metadata.language"][NO_GROUP].documents == 4
    texts = [*(document["text"] for document in DOCUMENTS), "The sea\n", "is blue\n", "wide"]
    for tokenizer, one in zip(pair, found, strict=True):
        assert one.total.tokens == sum(len(tokenizer.encode(text)) for text in texts)


def test_batches_do_not_change_the_counts(tokenizers, tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", DOCUMENTS * 5)
    tokenizer = tokenizers["byte-level"]
    [whole] = measure_corpus([tokenizer], [path], by=["metadata.language"])
    for name, size in (("BATCH_CHARACTERS", 30), ("BATCH_DOCUMENTS", 3)):
        monkeypatch.setattr(report, name, size)
        [parts] = measure_corpus([tokenizer], [path], by=["metadata.language"])
        assert parts.total == whole.total and parts.groups == whole.groups
        np.testing.assert_array_equal(parts.used_V, whole.used_V)


def test_memory_does_not_grow_with_the_corpus(tokenizers, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "BATCH_CHARACTERS", 10_000)
    monkeypatch.setattr(report, "MAX_GROUPS", 50)

    def peak(documents: int) -> int:
        path = write(
            tmp_path / f"{documents}.jsonl", [{"text": "sea " * 50, "n": str(i)} for i in range(documents)]
        )
        tracemalloc.start()
        measure_corpus([tokenizers["wordpiece"]], [path], by=["n"])
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(100)
    assert peak(1500) < 1.2 * peak(300)


def test_groups_beyond_the_bound_are_counted_together(tokenizers, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MAX_GROUPS", 3)
    path = write(tmp_path / "a.jsonl", [{"text": "sea", "n": str(i % 5)} for i in range(20)])
    [found] = measure_corpus([tokenizers["wordpiece"]], [path], by=["n"])
    assert {name: measure.documents for name, measure in found.groups["n"].items()} == {
        "0": 4, "1": 4, "2": 4, OTHER_GROUPS: 8,
    }  # fmt: skip


def test_a_sample_takes_of_each_input_its_share(tokenizers, tmp_path):
    (tmp_path / "a.txt").write_text("sea is wide\n" * 300)
    (tmp_path / "b.txt").write_text("ABCDEFGHIJK\n" * 100)
    [found] = measure_corpus([tokenizers["byte-level"]], [tmp_path], sample_by="line", sample_bytes=1200)
    # 900 and 300 bytes at 11 a line, the last line begun counts whole
    assert found.total.documents == 82 + 28 and found.total.bytes == 110 * 11
    with pytest.raises(UserError, match="sample_bytes is 0"):
        measure_corpus([tokenizers["byte-level"]], [tmp_path], sample_bytes=0)


def test_wrong_keys_and_empty_inputs_are_told(tokenizers, tmp_path):
    path = write(tmp_path / "a.jsonl", DOCUMENTS)
    with pytest.raises(UserError, match="no document has a value under 'metadata.lang'"):
        measure_corpus([tokenizers["wordpiece"]], [path], by=["metadata.lang"])
    with pytest.raises(UserError, match="no document has a value under 'text.language'"):
        measure_corpus([tokenizers["wordpiece"]], [path], by=["text.language"])
    with pytest.raises(UserError, match="no text in"):
        measure_corpus([tokenizers["wordpiece"]], [write(tmp_path / "b.jsonl", DOCUMENTS[3:])])
    with pytest.raises(UserError, match="sample_by is 'word'"):
        measure_corpus([tokenizers["wordpiece"]], [path], sample_by="word")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("byte-level", "byte-level BPE"),
        ("metaspace", "BPE with byte fallback"),
        ("prefix", "BPE with byte fallback"),
        ("wordpiece", "WordPiece"),
    ],
)
def test_the_kind_and_the_unknown_token_are_told(tokenizers, name, expected):
    assert kind(tokenizers[name]) == expected
    assert unknown_id(tokenizers[name]) == (None if name == "byte-level" else 0)


def test_a_vocabulary_is_described(tokenizers):
    tokenizer = tokenizers["byte-level"]
    described = describe(tokenizer, examples=3)
    size = tokenizer.vocab_size
    assert described["vocab_size"] == size > 300
    assert described["special_tokens"] == {token: i for i, token in enumerate(SPECIAL_TOKENS)}
    assert described["lossless"] and described["unknown_id"] is None
    assert described["pieces"] == size - 8 == sum(described["pieces_by_length"].values())
    assert described["pieces_by_length"][1] == 256
    pieces = [tokenizer.token_bytes(i) for i in range(8, size)]
    assert (
        max(map(len, pieces)) == max(described["pieces_by_length"]) == described["longest_pieces"][0]["bytes"]
    )
    assert [piece["bytes"] for piece in described["longest_pieces"]] == sorted(map(len, pieces))[:-4:-1]
    assert described["byte_pieces"] == sum("\ufffd" in piece.decode("utf-8", "replace") for piece in pieces)


def test_bytes_of_the_fallback_are_byte_pieces_and_ids_without_a_piece_are_none(tokenizers, tmp_path):
    vocabulary = read_vocabulary(tokenizers["metaspace"])
    assert vocabulary.byte_piece_V.sum() == 256
    described = describe(with_hole(tokenizers["byte-level"], tmp_path))
    assert described["vocab_size"] == 601 and described["pieces"] == tokenizers["byte-level"].vocab_size
    assert 0 not in described["pieces_by_length"]


def with_hole(tokenizer, directory: Path):
    """The tokenizer with id 600 but none below it from its own size on."""
    content = json.loads(tokenizer.content)
    content["added_tokens"] = []
    content["model"]["vocab"]["<x>"] = 600
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return load_tokenizer(directory, eod_token="<x>")


def test_pieces_are_shown_on_one_line():
    assert (
        readable(b" a\n\t" + "é\u200b\x1b".encode() + b"\xe6\x9d") == "·a\\n\\té\\u{200B}\\u{001B}\\xE6\\x9D"
    )
