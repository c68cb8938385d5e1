"""Batches: windows, labels, document resets and blends, against a plain reading of the data."""

import logging
from pathlib import Path

import numpy as np
import pytest

from megalm.dataset import IndexedDataset, TokenStream
from megalm.dataset.sidecar import KIND, write_sidecar
from megalm.errors import UserError

LENGTHS = [5, 1, 17, 3, 40, 2, 2, 60, 9, 30]  # 169 tokens; the ids count up, so an id is a place


@pytest.fixture
def prefix(write_dataset) -> Path:
    return write_dataset("a", LENGTHS)


def test_labels_are_the_tokens_that_follow_in_a_ring(prefix):
    batch = TokenStream([(prefix, 1)], 16, seed=3).batch(np.arange(50))
    assert batch.tokens_BS.shape == (50, 16)
    assert np.array_equal(batch.labels_BS, (batch.tokens_BS + 1) % 169)
    assert np.array_equal(batch.tokens_BS[:, 1:], batch.labels_BS[:, :-1])
    assert (batch.labels_BS == 0).any(), "no window reached the end of the data"


def test_types_and_defaults_without_resets(prefix):
    batch = TokenStream([(prefix, 1)], 16, seed=3).batch(np.array([4, 9]))
    assert batch.tokens_BS.dtype == batch.labels_BS.dtype == batch.positions_BS.dtype == np.int64
    assert batch.loss_mask_BS.dtype == np.float32
    assert (batch.loss_mask_BS == 1).all()
    assert batch.positions_BS.tolist() == [list(range(16))] * 2
    assert batch.segments_BS is None


def test_no_token_comes_twice_in_an_epoch_and_nearly_all_come(prefix):
    stream = TokenStream([(prefix, 1)], 16, seed=3)
    assert stream.windows.tolist() == [10]
    for epoch in range(5):
        tokens = stream.batch(np.arange(10) + 10 * epoch).tokens_BS
        assert len(np.unique(tokens)) == tokens.size == 160


def test_borders_of_windows_move_from_epoch_to_epoch(prefix):
    starts = TokenStream([(prefix, 1)], 16, seed=3).batch(np.arange(100)).tokens_BS[:, 0]
    phases = {tuple(sorted(epoch % 16)) for epoch in starts.reshape(10, 10)}
    assert len(phases) > 5


def test_every_token_is_trained_on_equally_often_in_the_long_run(prefix):
    tokens = TokenStream([(prefix, 1)], 16, seed=3).batch(np.arange(10 * 400)).tokens_BS
    counts = np.bincount(tokens.ravel(), minlength=169)
    assert counts.min() > 0.85 * counts.mean()


@pytest.mark.parametrize("lengths", [LENGTHS, [0, 5, 0, 0, 30, 1, 1, 40, 0], [169]])
def test_resets_agree_with_a_walk_over_the_documents(write_dataset, lengths):
    prefix = write_dataset("b", lengths)
    total = sum(lengths)
    begins = {sum(lengths[:i]) for i, length in enumerate(lengths) if length}
    batch = TokenStream([(prefix, 1)], 16, seed=3, reset_at_document_end=True).batch(np.arange(60))
    for tokens, labels, mask, positions, segments in zip(
        batch.tokens_BS,
        batch.labels_BS,
        batch.loss_mask_BS,
        batch.positions_BS,
        batch.segments_BS,
        strict=True,
    ):
        position = segment = 0
        for i, token in enumerate(tokens.tolist()):
            if i and token in begins:
                position, segment = 0, segment + 1
            assert (positions[i], segments[i]) == (position, segment)
            assert mask[i] == (labels[i] not in begins)
            assert labels[i] == (token + 1) % total
            position += 1


def test_documents_of_several_sequences_reset_at_the_document(tmp_path):
    from megalm.dataset import IndexedDatasetWriter

    with IndexedDatasetWriter(tmp_path / "a", np.dtype("<i4")) as writer:
        writer.add_documents(np.arange(30), np.array([10, 5, 15]), np.array([2, 3]))
    batch = TokenStream([(tmp_path / "a", 1)], 29, seed=0, reset_at_document_end=True).batch(np.arange(20))
    restarts = batch.tokens_BS[(batch.positions_BS == 0) & (np.arange(29) > 0)]
    assert set(restarts.tolist()) == {0, 15}


def test_samples_do_not_depend_on_how_they_are_batched(prefix, write_dataset):
    other = write_dataset("other", [100, 300], first=1000)
    stream = TokenStream([(prefix, 0.6), (other, 0.4)], 16, seed=3, reset_at_document_end=True)
    whole = stream.batch(np.arange(64))
    again = TokenStream([(IndexedDataset(prefix), 6), (other, 4)], 16, seed=3, reset_at_document_end=True)
    for rank in range(4):
        part = again.batch(np.arange(64)[rank::4])
        for name, value in vars(part).items():
            assert np.array_equal(value, getattr(whole, name)[rank::4])


def test_sources_come_by_their_weights(prefix, write_dataset):
    other = write_dataset("other", [100, 300], first=1000)
    batch = TokenStream([(prefix, 3), (other, 1)], 16, seed=3).batch(np.arange(4096))
    assert (batch.tokens_BS[:, 0] >= 1000).sum() == 1024


def test_unsigned_16_bit_ids_are_read_whole(write_dataset):
    prefix = write_dataset("big", [40], first=65440, dtype="<u2")
    assert TokenStream([(prefix, 1)], 8, seed=0).batch(np.arange(5)).tokens_BS.min() >= 65440


def test_wrong_sources_are_named(prefix, tmp_path, write_dataset):
    with pytest.raises(UserError, match="no training data"):
        TokenStream([], 16, seed=0)
    with pytest.raises(UserError, match="no dataset at"):
        TokenStream([(tmp_path / "none", 1)], 16, seed=0)
    with pytest.raises(UserError, match="169 tokens, fewer than one window of 169"):
        TokenStream([(prefix, 1)], 169, seed=0)
    assert TokenStream([(prefix, 1)], 168, seed=0).batch(np.arange(2)).tokens_BS.shape == (2, 168)
    with pytest.raises(UserError, match="data weights"):
        TokenStream([(prefix, -1)], 16, seed=0)
    with pytest.raises(UserError, match="seq_length is 0"):
        TokenStream([(prefix, 1)], 0, seed=0)
    with pytest.raises(UserError, match="float32, not token ids"):
        TokenStream([(write_dataset("f", [100], dtype="<f4"), 1)], 16, seed=0)


def test_another_tokenizer_is_an_error_and_an_unknown_one_a_warning(prefix, caplog):
    with caplog.at_level(logging.WARNING):
        TokenStream([(prefix, 1)], 16, seed=0, expected_tokenizer_hash="abc")
    assert "no .json sidecar" in caplog.text
    write_sidecar(prefix, {"kind": KIND, "tokenizer_hash": "abc"})
    TokenStream([(prefix, 1)], 16, seed=0, expected_tokenizer_hash="abc")
    with pytest.raises(UserError, match="made with tokenizer_hash abc, the model has xyz"):
        TokenStream([(prefix, 1)], 16, seed=0, expected_tokenizer_hash="xyz")


@pytest.mark.parametrize(
    ("first", "vocab_size", "found"), [(1000, 1169, None), (1000, 1168, 1168), (-3, 5000, -3)]
)
def test_ids_outside_the_vocabulary_are_named_with_their_dataset(
    prefix, write_dataset, first, vocab_size, found
):
    other = write_dataset("other", [169], first=first)
    stream = TokenStream([(prefix, 1), (other, 1)], 16, seed=3, vocab_size=vocab_size)
    if found is None:
        assert stream.batch(np.arange(100)).tokens_BS.max() > 1100
    else:
        with pytest.raises(UserError, match=rf"other holds the id {found}, .* ends at {vocab_size - 1};"):
            stream.batch(np.arange(100))


@pytest.mark.parametrize("lengths", [[50], [169], [16 * 1024], [16 * 1500], [16 * 30, 40000]])
def test_samples_before_repeats_are_just_those_that_hold_no_window_twice(prefix, write_dataset, lengths):
    other = write_dataset("other", [16 * 5000], first=100000)
    blends = [[(prefix, 1)], [(write_dataset("small", lengths), 1), (other, 3)]]
    for sources in blends:
        stream = TokenStream(sources, 16, seed=3)
        count = stream.samples_before_repeats()
        assert 0 < count <= stream.windows.sum()
        tokens = stream.batch(np.arange(count)).tokens_BS
        assert len(np.unique(tokens)) == tokens.size
        assert _epochs(stream, count) == {0} and _epochs(stream, count + 1) == {0, 1}


def _epochs(stream: TokenStream, count: int) -> set[int]:
    return set(stream.locate(np.arange(count)).epoch_B.tolist())


def test_places_in_the_ring_do_not_overflow(prefix, monkeypatch):
    """The phase is a number of 63 bits, and added to a place."""
    phase = 2**63 - 1
    monkeypatch.setattr("megalm.dataset.blend._phase", lambda *_: phase)
    starts = TokenStream([(prefix, 1)], 16, seed=3).batch(np.arange(10)).tokens_BS[:, 0]
    assert sorted(starts) == sorted((16 * window + phase) % 169 for window in range(10))
