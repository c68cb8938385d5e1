"""Packed samples: whole documents, each by itself, against a plain reading of the data."""

import numpy as np
import pytest

from megalm.dataset import IndexedDataset, IndexedDatasetWriter, TokenStream
from megalm.dataset.pack_stream import PackStream
from megalm.dataset.shares import Budget
from megalm.errors import UserError

LENGTHS = [5, 1, 17, 3, 40, 2, 2, 60, 9, 30, 4, 4, 4, 11, 0, 16]
ARRAYS = ("tokens_BS", "labels_BS", "loss_mask_BS", "positions_BS", "segments_BS")


@pytest.fixture
def prefix(write_dataset):
    """Ids count up, so an id is a place."""
    return write_dataset("a", LENGTHS)


def rows_of(batch):
    return zip(*(getattr(batch, name) for name in ARRAYS), strict=True)


@pytest.mark.parametrize("long_documents", ["cut", "truncate", "drop"])
def test_an_epoch_holds_every_label_once_and_samples_hold_whole_documents(prefix, long_documents):
    stream = PackStream([(prefix, 1)], 16, seed=3, long_documents=long_documents)
    packs, starts = int(stream.windows[0]), np.cumsum([0, *LENGTHS])
    for epoch in (0, 4):
        labels: list[int] = []
        for tokens, targets, mask, positions, segments in rows_of(
            stream.batch(epoch * packs + np.arange(packs))
        ):
            counted = mask == 1
            assert np.array_equal(np.flatnonzero(counted), np.arange(counted.sum())), "padding is at the end"
            assert np.array_equal(targets[counted], tokens[counted] + 1)
            assert (segments[~counted] == segments.max()).all() and (tokens[~counted] == 0).all()
            assert set(segments[counted]).isdisjoint(segments[~counted])
            for segment in range(segments.max() + 1):
                inside = segments == segment
                assert np.array_equal(positions[inside], np.arange(inside.sum()))
            for segment in set(segments[counted]):
                inside = targets[segments == segment]
                document = np.searchsorted(starts, inside, side="right") - 1
                assert len(set(document)) == 1 and np.array_equal(inside, inside[0] + np.arange(len(inside)))
                if LENGTHS[document[0]] <= 17:
                    assert len(inside) == LENGTHS[document[0]] - 1
                else:
                    assert (inside[0] - starts[document[0]] - 1) % 16 == 0
            labels += targets[counted].tolist()
        kept = {"cut": 10**9, "truncate": 16, "drop": 0}[long_documents]
        expected = [
            int(start) + 1 + i
            for start, length in zip(starts, LENGTHS, strict=False)
            for i in range(min(length - 1, kept) if length > 17 else length - 1)
        ]
        assert sorted(labels) == expected


def test_types_are_those_of_windows(prefix):
    one = TokenStream([(prefix, 1)], 16, seed=3, reset_at_document_end=True).batch(np.arange(2))
    other = PackStream([(prefix, 1)], 16, seed=3).batch(np.arange(2))
    for name in ARRAYS:
        assert getattr(one, name).dtype == getattr(other, name).dtype
        assert getattr(one, name).shape == getattr(other, name).shape


def test_epochs_take_each_pack_once_in_another_order(prefix):
    stream = PackStream([(prefix, 1)], 16, seed=3)
    packs = int(stream.windows[0])
    assert stream.samples_before_repeats() == packs
    epochs = [[row.tobytes() for row in stream.batch(e * packs + np.arange(packs)).tokens_BS] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]
    assert len(set(epochs[0])) == packs


def test_samples_do_not_depend_on_how_they_are_batched(prefix, write_dataset):
    other = write_dataset("other", [100, 300, 2, 5], first=1000)
    whole = PackStream([(prefix, 0.6), (other, 0.4)], 16, seed=3).batch(np.arange(64))
    again = PackStream([(IndexedDataset(prefix), 6), (other, 4)], 16, seed=3)
    for rank in range(4):
        part = again.batch(np.arange(64)[rank::4])
        for name in ARRAYS:
            assert np.array_equal(getattr(part, name), getattr(whole, name)[rank::4])
    assert not np.array_equal(
        PackStream([(prefix, 1)], 16, seed=4).batch(np.arange(9)).tokens_BS,
        PackStream([(prefix, 1)], 16, seed=3).batch(np.arange(9)).tokens_BS,
    )


def test_pieces_tell_what_a_sample_is_made_of(prefix):
    stream = PackStream([(prefix, 1)], 16, seed=3)
    for sample in range(20):
        batch = stream.batch(np.array([sample]))
        pieces = stream.pieces(sample)
        told = np.concatenate([piece.ids() for piece in pieces])
        assert np.array_equal(told, batch.tokens_BS[0, : len(told)])
        assert batch.loss_mask_BS.sum() == len(told)
        assert [piece.tokens for piece in pieces] == np.bincount(batch.segments_BS[0, : len(told)]).tolist()


def write_masked(prefix, lengths, seed=0):
    """Documents whose first tokens, a third or so, do not count."""
    random = np.random.default_rng(seed)
    marks = [np.arange(length) >= random.integers(0, 1 + length // 2) for length in lengths]
    with IndexedDatasetWriter(prefix, np.dtype("<i4"), masked=True) as writer:
        first = 0
        for length, mark in zip(lengths, marks, strict=True):
            ids = np.arange(first, first + length)
            writer.add_documents(ids, np.array([length]), counts=mark.astype(np.uint8))
            first += length
    return np.concatenate(marks)


def test_tokens_that_do_not_count_are_no_labels_that_count(tmp_path):
    marks = write_masked(tmp_path / "m", LENGTHS)
    assert 0.2 < marks.mean() < 0.95
    for start, count in ((0, len(marks)), (3, 50), (17, 0), (8, 8), (len(marks) - 1, 1)):
        read = IndexedDataset(tmp_path / "m").loss_mask.read(start, count)
        assert np.array_equal(read, marks[start : start + count])
    packs = PackStream([(tmp_path / "m", 1)], 16, seed=3)
    batch = packs.batch(np.arange(packs.windows[0]))
    padding = batch.segments_BS == batch.segments_BS.max(axis=1, keepdims=True)
    inside = ~padding | (batch.labels_BS > 0)
    assert np.array_equal(batch.loss_mask_BS[inside], marks[batch.labels_BS[inside]])
    assert not batch.loss_mask_BS[~inside].any()
    for reset in (False, True):
        windows = TokenStream([(tmp_path / "m", 1)], 16, seed=3, reset_at_document_end=reset)
        batch = windows.batch(np.arange(40))
        crossing = np.isin(batch.labels_BS, np.cumsum([0, *LENGTHS])) if reset else False
        assert np.array_equal(batch.loss_mask_BS, marks[batch.labels_BS] & ~crossing)


def test_a_mask_that_does_not_fit_is_named(tmp_path):
    write_masked(tmp_path / "m", LENGTHS)
    path = tmp_path / "m.mask"
    whole = path.read_bytes()
    for data in (whole[:-1], whole + b"\0", whole[:12], b"?" + whole[1:]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"m\.mask (is not a loss mask|has \d+ bytes for)"):
            IndexedDataset(tmp_path / "m")


def test_budgets_count_packs(prefix):
    stream = PackStream([(prefix, Budget(epochs=2))], 16, seed=3)
    assert stream.samples_in_budget == 2 * stream.windows[0]
    with pytest.raises(UserError, match=r"write epochs: \d"):
        PackStream([(prefix, Budget(tokens=10_000))], 16, seed=3)


def test_what_cannot_be_packed_is_named(prefix, write_dataset):
    with pytest.raises(UserError, match="no document of .*long fits a sample of 16 tokens"):
        PackStream([(prefix, 1), (write_dataset("long", [20, 1]), 1)], 16, seed=0, long_documents="drop")
    with pytest.raises(UserError, match="holds the id"):
        PackStream([(prefix, 1)], 16, seed=0, vocab_size=100).batch(np.arange(20))
    with pytest.raises(UserError, match="seq_length is 0"):
        PackStream([(prefix, 1)], 0, seed=0)


def test_the_share_of_padding_and_what_is_cut_are_told(prefix):
    stream = PackStream([(prefix, 1)], 16, seed=3)
    (told,) = stream.describe()
    long = sum(length > 17 for length in LENGTHS)
    padding = 1 - (sum(LENGTHS) - sum(length > 0 for length in LENGTHS)) / (16 * stream.windows[0])
    assert told == f"{prefix}: {stream.windows[0]} packs of 16 tokens, {100 * padding:.2f}% padding, " + (
        f"2 of 16 documents left out, {long} cut into several"
    )
    (told,) = PackStream([(prefix, 1)], 16, seed=3, long_documents="truncate", one_document=True).describe()
    assert told.endswith(f"2 of 16 documents left out, {long} without their end")
    (told,) = PackStream([(prefix, 1)], 16, seed=3, long_documents="drop").describe()
    assert told.endswith(f"{2 + long} of 16 documents left out")
