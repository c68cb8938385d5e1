"""Batches of training windows as a pure function of the data, the seed and the sample numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megalm.dataset.blend import Blend
from megalm.dataset.indexed import IndexedDataset
from megalm.errors import UserError


@dataclass
class Batch:
    """Windows of tokens, the tokens to predict and what attention and positions need."""

    tokens_BS: NDArray[np.int64]
    labels_BS: NDArray[np.int64]
    """The token after each of `tokens_BS`."""
    loss_mask_BS: NDArray[np.float32]
    """1 where the label counts, 0 where not."""
    positions_BS: NDArray[np.int64]
    segments_BS: NDArray[np.int64] | None
    """Number of the document inside the window, where attention stays within documents; else None."""


class TokenStream(Blend):
    """A weighted blend of token datasets, cut into windows of `seq_length` tokens.

    Each source is read as a ring. In every epoch its windows begin at another random phase, so the borders
    between windows move; they are taken in random order, and no token is an input twice in an epoch. The same
    arguments give the same samples on every process, whatever the layout.
    """

    def __init__(
        self,
        sources: Sequence[tuple[str | Path | IndexedDataset, float]],
        seq_length: int,
        seed: int,
        reset_at_document_end: bool = False,
        expected_tokenizer_hash: str | None = None,
        vocab_size: int | None = None,
    ) -> None:
        """Open `sources`, pairs of a dataset (or its prefix) and its weight; weights need not sum to 1.

        With `reset_at_document_end` positions start again at each document, `segments_BS` tells documents
        apart, and the label that would cross into the next document does not count. `expected_tokenizer_hash`,
        where given, must be the one that the datasets' sidecars record, and every id that is read below
        `vocab_size`. Raises UserError for no source, a missing or damaged dataset, a wrong weight, a dataset
        of not even seq_length + 1 tokens, or another tokenizer.
        """
        if seq_length < 1:
            raise UserError(f"seq_length is {seq_length}; it must be at least 1")
        super().__init__(sources, seq_length, seq_length + 1, seed, expected_tokenizer_hash)
        self.seq_length = seq_length
        self.vocab_size = vocab_size
        self.reset_at_document_end = reset_at_document_end

    def batch(self, positions: NDArray[np.int64]) -> Batch:
        """Return the samples whose global numbers (from 0) are `positions`.

        Raises UserError for an id outside the vocabulary.
        """
        start_B, source_B = self.window_starts(np.asarray(positions, np.int64))
        window_BT = np.empty((len(start_B), self.seq_length + 1), np.int64)
        for row, start, source in zip(window_BT, start_B.tolist(), source_B.tolist(), strict=True):
            _read_ring(self.datasets[source], start, row)
        self._check_ids(window_BT, source_B)
        tokens_BS, labels_BS = window_BT[:, :-1], window_BT[:, 1:]
        if not self.reset_at_document_end:
            positions_BS = np.tile(np.arange(self.seq_length, dtype=np.int64), (len(start_B), 1))
            return Batch(tokens_BS, labels_BS, np.ones(tokens_BS.shape, np.float32), positions_BS, None)

        begins_BT = np.zeros(window_BT.shape, bool)
        for source, dataset in enumerate(self.datasets):
            rows = np.flatnonzero(source_B == source)
            begins_BT[rows] = _document_begins(dataset, start_B[rows], self.seq_length + 1)
        loss_mask_BS = (~begins_BT[:, 1:]).astype(np.float32)
        index_S = np.arange(self.seq_length)
        begin_BS = np.maximum.accumulate(np.where(begins_BT[:, :-1], index_S, 0), axis=1)
        segments_BS = np.cumsum(begins_BT[:, :-1], axis=1)
        return Batch(tokens_BS, labels_BS, loss_mask_BS, index_S - begin_BS, segments_BS)

    def _check_ids(self, window_BT: NDArray[np.int64], source_B: NDArray[np.int64]) -> None:
        if self.vocab_size is None or not window_BT.size:
            return
        if window_BT.min() >= 0 and window_BT.max() < self.vocab_size:
            return
        outside_BT = (window_BT < 0) | (window_BT >= self.vocab_size)
        row = int(outside_BT.any(axis=1).argmax())
        raise UserError(
            f"dataset {self.datasets[source_B[row]].prefix} holds the id {window_BT[row][outside_BT[row]][0]}, the "
            f"model's vocabulary ends at {self.vocab_size - 1}; build the dataset with the model's tokenizer"
        )


def _read_ring(dataset: IndexedDataset, start: int, row: NDArray[np.int64]) -> None:
    """Fill `row` with tokens from `start` on, going on at the first token after the last."""
    first = min(len(row), dataset.num_tokens - start)
    row[:first] = dataset.tokens(start, first)
    row[first:] = dataset.tokens(0, len(row) - first)


def _document_begins(dataset: IndexedDataset, start_B: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Return (B, count) marks of the tokens after `start_B`, in the ring, that begin a document."""
    begins_BT = np.zeros((len(start_B), count), bool)
    stop_B = np.minimum(start_B + count, dataset.num_tokens)
    first_B, last_B = dataset.document_at(start_B), dataset.document_at(stop_B - 1)
    wrapped_B = start_B + count - stop_B
    last_wrapped_B = dataset.document_at(np.maximum(wrapped_B - 1, 0))
    for row, start in enumerate(start_B.tolist()):
        inside = dataset.document_starts(np.arange(first_B[row], last_B[row] + 1))
        begins_BT[row, inside[inside > start] - start] = True
        if wrapped_B[row]:
            again = dataset.document_starts(np.arange(last_wrapped_B[row] + 1))
            begins_BT[row, dataset.num_tokens - start + again] = True
    return begins_BT
