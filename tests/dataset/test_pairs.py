"""Samples for BERT: their form, where their segments come from, and that they are a function of the sample number."""

from pathlib import Path

import numpy as np
import pytest

from megalm.dataset import IndexedDataset, IndexedDatasetWriter
from megalm.dataset.pairs import MaskingSettings, PairBatch, PairStream
from megalm.errors import UserError
from megalm.tokenizer.wordpiece import MaskingVocabulary

PAD, CLS, SEP, MASK, FIRST = 0, 1, 2, 3, 10
VOCABULARY = 60_000
LENGTH = 32
PIECE = 7  # tokens whose number is a multiple of it go on with the word before


def vocabulary(pieces: bool = True) -> MaskingVocabulary:
    continues_V = np.arange(VOCABULARY) % PIECE == 0
    continues_V[:FIRST] = False
    return MaskingVocabulary(VOCABULARY, CLS, SEP, MASK, PAD, continues_V if pieces else None)


def write(path: Path, documents: list[list[int]], eod: bool = True) -> Path:
    """Documents of sentences of the given lengths; tokens count up through the file, so that a token tells its place."""
    token = FIRST
    with IndexedDatasetWriter(path, np.dtype("<i4")) as writer:
        for sentences in documents:
            lengths = np.array(sentences)
            tokens = np.arange(token, token + lengths.sum())
            token += len(tokens)
            if eod:
                tokens, lengths = (
                    np.append(tokens, SEP),
                    lengths + (np.arange(len(lengths)) == len(lengths) - 1),
                )
            writer.add_documents(tokens, lengths, np.array([len(lengths)]))
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """200 documents of one sequence each, short and long ones."""
    return write(tmp_path / "plain", [[length] for length in np.random.default_rng(0).integers(2, 90, 200)])


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    """100 documents of several sentences."""
    random = np.random.default_rng(1)
    return write(tmp_path / "sentences", [random.integers(3, 12, random.integers(2, 8)) for _ in range(100)])


def stream(prefix: Path, seed: int = 5, pieces: bool = True, **settings) -> PairStream:
    return PairStream([(prefix, 1)], LENGTH, seed, vocabulary(pieces), MaskingSettings(**settings))


def segments(batch: PairBatch, row: int) -> tuple[np.ndarray, np.ndarray]:
    """A and B as they were before tokens were hidden."""
    text = batch.labels_BS[row][batch.segments_BS[row] == 0]
    ends = np.flatnonzero(text == SEP)
    return text[1 : ends[0]], text[ends[0] + 1 : -1]


def document_of(dataset: IndexedDataset, tokens: np.ndarray) -> set[int]:
    places = tokens - FIRST
    # a document's tokens are preceded by one [SEP] of each document before it
    ends = dataset.document_starts(np.arange(1, dataset.num_documents + 1)) - np.arange(
        1, dataset.num_documents + 1
    )
    return set(np.searchsorted(ends, places, side="right").tolist())


def test_rows_are_framed_and_padded(plain):
    batch = stream(plain).batch(np.arange(400))
    for row in range(400):
        first, second = segments(batch, row)
        text = [CLS, *first, SEP, *second, SEP] if len(second) else [CLS, *first, SEP]
        padding = LENGTH - len(text)
        assert padding >= 0 and len(first)
        assert batch.labels_BS[row].tolist() == text + [PAD] * padding
        assert batch.segments_BS[row].tolist() == [0] * len(text) + [-1] * padding
        types = [0] * (len(first) + 2) + [1] * (len(second) + 1 if len(second) else 0) + [0] * padding
        assert batch.token_types_BS[row].tolist() == types
        chosen = batch.loss_mask_BS[row] > 0
        special = np.isin(batch.labels_BS[row], [CLS, SEP, PAD])
        assert chosen.any() and not (chosen & special).any()
        assert (batch.tokens_BS[row] == batch.labels_BS[row])[~chosen].all()
        assert (batch.classes_B[row] == -1) == (not len(second))
    assert (batch.tokens_BS[batch.loss_mask_BS > 0] == MASK).mean() == pytest.approx(0.8, abs=0.05)


def test_samples_are_a_function_of_seed_and_number(plain):
    whole = stream(plain).batch(np.arange(64))
    for positions in (np.arange(63, -1, -1), np.array([5]), np.array([40, 3, 40])):
        part = stream(plain).batch(positions)
        for name, array in vars(part).items():
            assert (array == vars(whole)[name][positions]).all(), name
    other = stream(plain, seed=6).batch(np.arange(64))
    assert (other.tokens_BS != whole.tokens_BS).any(1).all()


def test_swapped_segments_are_told_apart_from_ordered_ones(plain):
    dataset, batch = IndexedDataset(plain), stream(plain, short_probability=0.0).batch(np.arange(2000))
    for row in range(2000):
        first, second = segments(batch, row)
        label = batch.classes_B[row]
        assert len(document_of(dataset, np.concatenate([first, second]))) == 1
        if label == 0:
            assert second[0] == first[-1] + 1
        elif label == 1:
            assert first[0] == second[-1] + 1
        for part in (first, second):
            assert (np.diff(part) == 1).all()
        if len(second):
            begins_later = second if label == 0 else first
            assert begins_later[0] % PIECE, "the cut lies within a word"
    labels = batch.classes_B[batch.classes_B >= 0]
    assert len(labels) > 1900
    assert labels.mean() == pytest.approx(0.5, abs=0.05)


def test_next_sentences_follow_and_others_come_from_another_document(plain):
    dataset = IndexedDataset(plain)
    batch = stream(plain, objective="nsp").batch(np.arange(2000))
    other_documents = set()
    for row in range(2000):
        first, second = segments(batch, row)
        if batch.classes_B[row] == 0:
            assert second[0] == first[-1] + 1
        elif batch.classes_B[row] == 1:
            mine, other = document_of(dataset, first), document_of(dataset, second)
            assert len(mine) == len(other) == 1 and mine != other
            other_documents |= other
    labels = batch.classes_B[batch.classes_B >= 0]
    assert labels.mean() == pytest.approx(0.5, abs=0.05)
    assert len(other_documents) > 150


@pytest.mark.parametrize("objective", ["sop", "nsp"])
def test_segments_are_cut_at_sentences_where_the_file_knows_them(sentences, objective):
    dataset = IndexedDataset(sentences)
    starts = dataset.sequence_pointers[:] // dataset.dtype.itemsize
    # a token's number tells its place once the [SEP]s before it are counted
    ends_before = np.searchsorted(dataset.document_indices[1:], np.arange(len(starts)), side="right")
    first_tokens = set((starts - ends_before + FIRST).tolist())
    batch = stream(sentences, objective=objective, short_probability=0.0, pieces=False, whole_word=False)
    batch = batch.batch(np.arange(500))
    cut = 0
    for row in range(500):
        first, second = segments(batch, row)
        label = batch.classes_B[row]
        later = first if (label, objective) == (1, "sop") else second
        cut += len(second) > 0 and later[0] in first_tokens
    assert cut > 480  # a span may lie within one sentence


def test_all_text_is_seen_and_long_documents_fill_rows(plain):
    dataset = IndexedDataset(plain)
    pairs = stream(plain, short_probability=0.0)
    batch = pairs.batch(np.arange(12 * int(pairs.windows[0])))
    seen = np.unique(batch.labels_BS[batch.segments_BS == 0])
    text = set(range(FIRST, FIRST + dataset.num_tokens - dataset.num_documents))
    assert len(text - set(seen.tolist())) < 0.05 * len(text)
    lengths = (batch.segments_BS == 0).sum(1)
    assert (lengths == LENGTH).mean() > 0.7


def test_some_samples_are_short(plain):
    lengths = (stream(plain, short_probability=1.0).batch(np.arange(1000)).segments_BS == 0).sum(1)
    assert set(lengths) >= set(range(5, LENGTH + 1))


def test_samples_of_one_segment_for_models_without_sentence_head(plain):
    batch = stream(plain, objective=None).batch(np.arange(200))
    assert (batch.classes_B == -1).all()
    assert not batch.token_types_BS.any()
    assert ((batch.labels_BS == SEP).sum(1) == 1).all()
    assert (batch.segments_BS == 0).sum(1).max() == LENGTH


def test_documents_of_no_text_and_of_one_token_have_no_pair(tmp_path):
    path = write(tmp_path / "small", [[1]] * 40)
    with IndexedDatasetWriter(tmp_path / "empty", np.dtype("<i4")) as writer:
        for _ in range(50):
            writer.add_document(np.array([SEP]))
    for prefix in (path, tmp_path / "empty"):
        for objective in ("sop", "nsp"):
            batch = stream(prefix, objective=objective).batch(np.arange(50))
            assert (batch.classes_B == -1).all()
            assert (batch.token_types_BS == 0).all()


def test_epochs_do_not_repeat_a_window(plain):
    pairs = stream(plain)
    assert (
        pairs.samples_before_repeats()
        == int(pairs.windows[0])
        == pairs.datasets[0].num_tokens // (LENGTH - 3)
    )


def test_user_errors_name_the_mend(plain, tmp_path):
    with pytest.raises(UserError, match=r"mlm\.whole_word .* set it to false"):
        stream(plain, pieces=False)
    with pytest.raises(UserError, match="has one document"):
        stream(write(tmp_path / "one", [[500]]), objective="nsp")
    with pytest.raises(UserError, match="fewer than one window"):
        stream(write(tmp_path / "tiny", [[5]]))
    small = MaskingVocabulary(FIRST, CLS, SEP, MASK, PAD, np.zeros(FIRST, bool))
    with pytest.raises(UserError, match=f"the tokenizer ends at {FIRST - 1}"):
        PairStream([(plain, 1)], LENGTH, 5, small, MaskingSettings()).batch(np.arange(5))
