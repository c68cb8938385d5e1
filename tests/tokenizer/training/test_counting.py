"""Counts are exact in bounded memory, whatever the number of workers and the size of the pieces."""

import gzip
import itertools
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from megalm.errors import UserError
from megalm.tokenizer.training import counting, texts
from megalm.tokenizer.training.counting import Tally, WordCounts, count_words
from megalm.tokenizer.training.cutting import Cutter
from megalm.tokenizer.training.texts import Piece, cut_inputs

WORDS = Cutter("words")


def random_texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijäß東", k=rng.randint(1, 6))) for _ in range(5 * count)]
    return [" ".join(rng.choices(words, k=rng.randint(1, 30))) for _ in range(count)]


def write_jsonl(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def counted(path: Path, folder: Path, max_words: int = 10**9, sample_by="document", **options) -> WordCounts:
    folder.mkdir(exist_ok=True)
    bundles = cut_inputs([path], sample_by, None)
    return count_words(bundles, WORDS, folder, max_words, sample_by=sample_by, **options)


def as_dict(counts: WordCounts) -> dict[str, int]:
    return {word.decode(): count for word, count in zip(counts.words, counts.counts.tolist(), strict=True)}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a small corpus reaches."""
    monkeypatch.setattr(counting, "WORDS_IN_MEMORY", 100)
    monkeypatch.setattr(counting, "WORDS_A_BLOCK", 17)
    monkeypatch.setattr(counting, "FILES_AT_ONCE", 3)
    monkeypatch.setattr(counting, "BATCH_CHARACTERS", 500)
    monkeypatch.setattr(texts, "SMALLEST_PIECE", 4000)


def test_counts_are_exact_and_sorted_through_many_files_on_disk(tmp_path, small):
    lines = random_texts(800)
    counts = counted(write_jsonl(tmp_path / "a.jsonl", lines), tmp_path / "work")
    expected = Counter(word for line in lines for word in line.split())
    assert len(expected) > 2000
    assert as_dict(counts) == expected
    assert counts.words == sorted(counts.words)
    assert counts.distinct == len(expected) and counts.left_out == 0


def test_memory_does_not_grow_with_the_corpus(tmp_path, small, monkeypatch):
    held: list[int] = []
    save = Tally.save

    def watched(self):
        held.append(len(self._counts))
        save(self)

    monkeypatch.setattr(Tally, "save", watched)
    for size in (300, 3000):
        held.clear()
        source = write_jsonl(tmp_path / f"{size}.jsonl", random_texts(size))
        counts = counted(source, tmp_path / "work", max_words=50)
        assert counts.distinct > 2 * size and len(counts.words) == 50
        # what comes on top of the hundred is a batch: less than 500 characters and a text
        assert len(held) > size / 30 and max(held) < 200


def test_few_files_are_open_at_a_time(tmp_path, small, monkeypatch):
    merged: list[int] = []
    added_up = counting._added_up

    def watched(sources):
        sources = list(sources)
        merged.append(len(sources))
        return added_up(sources)

    monkeypatch.setattr(counting, "_added_up", watched)
    tally = Tally(tmp_path, "t")
    for number in range(20):
        tally.add([b"same", b"%d" % number], [1, 1])
        tally.save()
    assert dict(tally.sums()) == {b"same": 20, **{b"%d" % number: 1 for number in range(20)}}
    assert max(merged) <= counting.FILES_AT_ONCE + 1


def test_long_words_count_towards_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(counting, "BYTES_IN_MEMORY", 10_000)
    tally = Tally(tmp_path, "t")
    for number in range(30):
        tally.add([b"%d" % number * 1000, b"same" * 100], [1, 1])
        assert sum(map(len, tally._counts)) < 12_000
    assert dict(tally.sums())[b"same" * 100] == 30


def test_workers_do_not_change_the_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "SMALLEST_PIECE", 20_000)
    source = write_jsonl(tmp_path / "a.jsonl", random_texts(600))
    assert len(cut_inputs([source], "document", None)) > 3
    one, three = (counted(source, tmp_path / str(workers), workers=workers) for workers in (1, 3))
    assert as_dict(one) == as_dict(three)


def test_the_most_frequent_words_are_kept_and_of_equals_the_first(tmp_path):
    tally = Tally(tmp_path, "t")
    tally.add([b"e", b"d", b"c", b"b", b"a"], [5, 2, 2, 2, 1])
    kept = counting._most_frequent(tally, 3)
    assert as_dict(kept) == {"b": 2, "c": 2, "e": 5}
    assert kept.distinct == 5 and kept.left_out == pytest.approx(3 / 12)
    assert as_dict(kept.at_least(3)) == as_dict(kept.at_least(5)) == {"e": 5}
    for room, words in ((1, "e"), (4, "bcde"), (5, "abcde"), (9, "abcde")):
        assert "".join(as_dict(counting._most_frequent(tally, room))) == words


def test_counts_are_64_bit_on_disk_too(tmp_path):
    tally = Tally(tmp_path, "t")
    for _ in range(3):
        tally.add([b"a"], [(1 << 61) + 1])
        tally.save()
    assert counting._most_frequent(tally, 1).counts.tolist() == [3 * ((1 << 61) + 1)]


def test_a_text_file_gives_the_same_words_in_any_pieces(tmp_path, monkeypatch):
    rng = random.Random(1)
    pieces = [
        "word",
        "ß",
        "東京",
        "\n",
        "\n",
        "\n\n",
        " \n",
        "\r\n",
        " ",
        "  ",
        ".",
        "don't",
        "\t",
        "\u3000\n",
        "\u2028",
    ]
    text = "".join(rng.choices(pieces, k=6000))
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    document = write_jsonl(tmp_path / "a.jsonl", [text])
    for name in ("gpt2", "gpt4", "gpt2-digits", "gpt4-digits", "words"):
        cut = Cutter(name)
        expected = cut.count([text])
        for step, block in ((10**9, 10**9), (10**9, 300), (700, 200), (50, 1)):
            monkeypatch.setattr(texts, "SMALLEST_PIECE", step)
            monkeypatch.setattr(texts, "BLOCK_BYTES", block)
            bundles = cut_inputs([path], "document", None)
            assert (len(bundles) > 1) == (step < 10**9)
            for source in (bundles, [[Piece(document)]]):
                counts = count_words(source, cut, tmp_path, 10**9)
                assert dict(zip(counts.words, counts.counts.tolist(), strict=True)) == expected


def test_blocks_of_a_text_file_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "BLOCK_BYTES", 1000)
    path = tmp_path / "a.txt"
    path.write_text("東京 words in a line 東京\n" * 5000)
    whole = list(texts.texts(Piece(path), "text", "document"))
    assert max(map(len, whole)) < 1100 and "".join(whole) == path.read_text()
    jsonl = write_jsonl(tmp_path / "a.jsonl", [path.read_text()])
    blocks = list(texts.texts(Piece(jsonl), "text", "document"))
    assert max(map(len, blocks)) < 1100 and "".join(blocks) == path.read_text()


def test_small_files_share_a_task_and_large_ones_are_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "SMALLEST_PIECE", 1000)
    files = []
    for number in range(10):
        files.append(tmp_path / f"{number}.jsonl")
        write_jsonl(files[-1], ["x" * 200])
    files.append(write_jsonl(tmp_path / "big.jsonl", ["x" * 200] * 20))
    files.append(tmp_path / "packed.jsonl.gz")
    files[-1].write_bytes(gzip.compress(random.Random(0).randbytes(3000)))
    bundles = cut_inputs(files, "document", None)
    assert max(sum(piece.size for piece in bundle) for bundle in bundles[:-1]) <= 1000
    assert [len(bundle) for bundle in bundles[:3]] == [4, 4, 2]
    assert [piece.path for piece in bundles[-1]] == [files[-1]]
    covered = [(piece.start, piece.stop) for bundle in bundles for piece in bundle if piece.path == files[-2]]
    assert covered[0][0] == 0 and covered[-1][1] is None
    assert all(one[1] == two[0] for one, two in itertools.pairwise(covered))


def test_a_sample_takes_the_first_documents_of_every_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "SMALLEST_PIECE", 5000)
    lines = [f"w{number} " * 10 for number in range(1000)]
    path = write_jsonl(tmp_path / "a.jsonl", lines)
    bundles = cut_inputs([path], "document", 10_000)
    assert len(bundles) > 5
    read = [text for bundle in bundles for piece in bundle for text in texts.texts(piece, "text", "document")]
    assert 10_000 <= sum(map(len, read)) <= 10_000 + len(bundles) * 60
    assert read == sorted(read, key=lines.index) and lines.index(read[-1]) > 800 and read[0] == lines[0]


def test_bytes_that_are_no_utf8_are_named_by_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo\nthr\xe9e\n")
    with pytest.raises(UserError, match="a.txt line 3 is not UTF-8"):
        list(texts.texts(Piece(path), "text", "document"))


def test_an_error_in_a_worker_reaches_the_caller(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "SMALLEST_PIECE", 2000)
    path = write_jsonl(tmp_path / "a.jsonl", random_texts(100))
    with open(path, "a") as file:
        file.write("no json\n")
    with pytest.raises(UserError, match="line 101 is not JSON"):
        counted(path, tmp_path / "work", workers=2)
