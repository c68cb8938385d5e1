"""Samples of classification: what frames a text, what is cut, what the head sees, and that validation sees each document once."""

from pathlib import Path

import numpy as np
import pytest

from megalm.dataset.framing import Framing
from megalm.dataset.label_stream import EveryDocument, LabelStream
from megalm.dataset.labelled import Columns, build_labelled
from megalm.tokenizer import load_tokenizer
from tests.bert_text import WORDS, write_bert_data

CLS, SEP, PAD = 101, 102, 0


def framing(encoder: bool = True, length: int = 8, keep: str = "start", pooling: str = "mean") -> Framing:
    begin = (CLS,) if encoder else ()
    return Framing(begin, SEP, PAD, encoder, length, keep, pooling)  # type: ignore[arg-type]


def ids(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count)


@pytest.mark.parametrize(
    ("keep", "kept"),
    [("start", [1, 2, 3, 4, 5, 6]), ("end", [5, 6, 7, 8, 9, 10]), ("both", [1, 2, 3, 8, 9, 10])],
)
def test_long_texts_lose_what_is_not_kept(keep: str, kept: list[int]) -> None:
    (found,) = framing(keep=keep).frame([ids(1, 10)])
    assert found.tolist() == [CLS, *kept, SEP]
    (found,) = framing(encoder=False, length=7, keep=keep).frame([ids(1, 10)])
    assert found.tolist() == [*kept, SEP]
    (found,) = framing(encoder=False, length=4, keep="both").frame([ids(1, 10)])
    assert found.tolist() == [1, 2, 10, SEP], "of an odd number of places the start has one more"
    assert framing().is_long([ids(1, 7)]) and not framing().is_long([ids(1, 6)])


@pytest.mark.parametrize(
    ("lengths", "kept"),
    [((9, 9), (3, 2)), ((1, 9), (1, 4)), ((9, 1), (4, 1)), ((2, 2), (2, 2)), ((3, 2), (3, 2))],
)
def test_of_a_pair_the_longer_text_is_cut_first(lengths: tuple[int, int], kept: tuple[int, int]) -> None:
    first, second = framing().frame([ids(1, lengths[0]), ids(50, lengths[1])])
    assert first.tolist() == [CLS, *range(1, 1 + kept[0]), SEP]
    assert second.tolist() == [*range(50, 50 + kept[1]), SEP]


@pytest.mark.parametrize(
    ("pooling", "seen"), [("last", [0, 0, 0, 1, 0]), ("mean", [1, 1, 1, 1, 0]), ("first", [1, 0, 0, 0, 0])]
)
def test_the_head_sees_what_pooling_says_and_never_padding(pooling: str, seen: list[int]) -> None:
    frame = framing(pooling=pooling)
    rows = frame.rows([frame.frame([ids(1, 2)]), frame.frame([ids(1, 1), ids(5, 1)])], [1, 0], 6)
    assert rows.tokens_BS.tolist() == [[CLS, 1, 2, SEP, PAD, PAD], [CLS, 1, SEP, 5, SEP, PAD]]
    assert rows.loss_mask_BS[0, :5].tolist() == seen and rows.loss_mask_BS[:, 5].tolist() == [0, 0]
    assert rows.segments_BS is not None and rows.token_types_BS is not None
    assert rows.segments_BS.tolist() == [[0, 0, 0, 0, -1, -1], [0, 0, 0, 0, 0, -1]]
    assert rows.token_types_BS.tolist() == [[0] * 6, [0, 0, 0, 1, 1, 0]]


def test_streams_give_each_document_once_with_its_class(tmp_path: Path) -> None:
    write_bert_data(tmp_path)
    lines = [f"{'ab'[n % 2]}\t{word} {n}" for n, word in enumerate(WORDS)]
    (tmp_path / "rows.tsv").write_text("\n".join(["label\ttext", *lines]) + "\n")
    build_labelled([tmp_path / "rows.tsv"], tmp_path / "vocab.txt", tmp_path / "labelled", splits="70,30")
    prefixes = [tmp_path / "labelled_train", tmp_path / "labelled_valid"]
    tokenizer = load_tokenizer(tmp_path / "vocab.txt")
    frame = framing(length=16)

    every = EveryDocument([(prefix, 1.0) for prefix in prefixes], 1, frame, ["b", "a"], tokenizer.hash)
    assert every.in_full and every.samples_before_repeats() == 10
    batch = every.batch(np.arange(12))
    assert batch.classes_B[10:].tolist() == [-1, -1]
    texts = [
        tokenizer.decode([i for i in row if i not in (CLS, SEP, PAD)])
        for row in batch.tokens_BS[:10].tolist()
    ]
    assert {t.split()[0]: c for t, c in zip(texts, batch.classes_B.tolist(), strict=False)} == {
        word: 1 - n % 2 for n, word in enumerate(WORDS)
    }

    shuffled = LabelStream([(prefixes[0], 1.0)], 1, frame, ["b", "a"], tokenizer.hash)
    size = int(shuffled.windows[0])
    first, again = shuffled.batch(np.arange(size)), shuffled.batch(np.arange(size))
    np.testing.assert_array_equal(first.tokens_BS, again.tokens_BS)
    assert {tuple(row) for row in first.tokens_BS.tolist()} == {
        tuple(row) for row in batch.tokens_BS[:size].tolist()
    }
    assert first.tokens_BS.tolist() != batch.tokens_BS[:size].tolist()


@pytest.mark.parametrize(("pair", "long"), [(None, 4), ("other", 6)], ids=["texts", "pairs"])
def test_how_many_documents_are_cut_is_told(tmp_path: Path, pair: str | None, long: int) -> None:
    """Of 1 to 10 words; beside a pair's other word and another [SEP] there is room for one less each."""
    write_bert_data(tmp_path)
    lines = [f"{'ab'[n % 2]}\t{' '.join(WORDS[:1] * n)}\t{WORDS[1]}" for n in range(1, 11)]
    (tmp_path / "rows.tsv").write_text("\n".join(["label\ttext\tother", *lines]) + "\n")
    columns = Columns(pair=pair)
    build_labelled(
        [tmp_path / "rows.tsv"], tmp_path / "vocab.txt", tmp_path / "rows", columns, splits="100,0,0"
    )
    stream = LabelStream([(tmp_path / "rows_train", 1.0)], 1, framing(), ["a", "b"])
    assert f"10 documents, {long} of them longer than a sample of 8 tokens" in stream.describe()[0]
