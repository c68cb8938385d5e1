"""Batches of training windows as a pure function of the data, the seed and the sample numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megalm.dataset.blend import RingBlend, Source
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


@dataclass(frozen=True)
class Piece:
    """Tokens of a sample that come from one document."""

    dataset: IndexedDataset
    document: int
    first: int
    """Number of the first token in the document."""
    tokens: int

    def ids(self) -> NDArray[Any]:
        """Return the ids."""
        start = int(self.dataset.document_starts(np.array([self.document]))[0]) + self.first
        return self.dataset.tokens(start, self.tokens)


class TokenStream(RingBlend):
    """A weighted blend of token datasets, cut into windows of `seq_length` tokens.

    Each source is read as a ring. In every epoch its windows begin at another random phase, so the borders
    between windows move; they are taken in random order, and no token is an input twice in an epoch. The same
    arguments give the same samples on every process, whatever the layout.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        seq_length: int,
        seed: int,
        reset_at_document_end: bool = False,
        expected_tokenizer_hash: str | None = None,
        vocab_size: int | None = None,
    ) -> None:
        """Open `sources`, pairs of a dataset (or its prefix) and its weight or budget; weights need not sum to 1.

        With `reset_at_document_end` positions start again at each document, `segments_BS` tells documents
        apart, and the label that would cross into the next document does not count. `expected_tokenizer_hash`,
        where given, must be the one that the datasets' sidecars record, and every id that is read below
        `vocab_size`. Raises UserError for no source, a missing or damaged dataset, a wrong weight or budget, a dataset
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
        check_ids(window_BT, self.vocab_size, [self.datasets[source] for source in source_B.tolist()])
        tokens_BS, labels_BS = window_BT[:, :-1], window_BT[:, 1:]
        loss_mask_BS = self._loss_mask(start_B, source_B)
        if not self.reset_at_document_end:
            positions_BS = np.tile(np.arange(self.seq_length, dtype=np.int64), (len(start_B), 1))
            return Batch(tokens_BS, labels_BS, loss_mask_BS, positions_BS, None)

        begins_BT = np.zeros(window_BT.shape, bool)
        for source, dataset in enumerate(self.datasets):
            rows = np.flatnonzero(source_B == source)
            begins_BT[rows] = _document_begins(dataset, start_B[rows], self.seq_length + 1)
        loss_mask_BS *= ~begins_BT[:, 1:]
        index_S = np.arange(self.seq_length)
        begin_BS = np.maximum.accumulate(np.where(begins_BT[:, :-1], index_S, 0), axis=1)
        segments_BS = np.cumsum(begins_BT[:, :-1], axis=1)
        return Batch(tokens_BS, labels_BS, loss_mask_BS, index_S - begin_BS, segments_BS)

    def pieces(self, sample: int) -> list[Piece]:
        """Return what the tokens of the sample of this number consist of."""
        start_B, source_B = self.window_starts(np.array([sample]))
        dataset, start = self.datasets[int(source_B[0])], int(start_B[0])
        stop = min(start + self.seq_length, dataset.num_tokens)
        wrapped = start + self.seq_length - stop
        return _pieces(dataset, start, stop) + (_pieces(dataset, 0, wrapped) if wrapped else [])

    def _loss_mask(self, start_B: NDArray[np.int64], source_B: NDArray[np.int64]) -> NDArray[np.float32]:
        """Which labels the sources themselves let count."""
        loss_mask_BS = np.ones((len(start_B), self.seq_length), np.float32)
        for row, start, source in zip(loss_mask_BS, start_B.tolist(), source_B.tolist(), strict=True):
            dataset = self.datasets[source]
            if dataset.loss_mask is not None:
                first = (start + 1) % dataset.num_tokens
                inside = min(len(row), dataset.num_tokens - first)
                row[:inside] = dataset.loss_mask.read(first, inside)
                row[inside:] = dataset.loss_mask.read(0, len(row) - inside)
        return loss_mask_BS


def check_ids(ids_BT: NDArray[np.int64], vocab_size: int | None, datasets: Sequence[IndexedDataset]) -> None:
    """Raise UserError where a row, read from the dataset of that place, holds an id outside the vocabulary, if it is known."""
    if vocab_size is None or not ids_BT.size:
        return
    if ids_BT.min() >= 0 and ids_BT.max() < vocab_size:
        return
    outside_BT = (ids_BT < 0) | (ids_BT >= vocab_size)
    row = int(outside_BT.any(axis=1).argmax())
    raise UserError(
        f"dataset {datasets[row].prefix} holds the id {ids_BT[row][outside_BT[row]][0]}, the model's vocabulary ends at "
        f"{vocab_size - 1}; build the dataset with the model's tokenizer"
    )


def _pieces(dataset: IndexedDataset, start: int, stop: int) -> list[Piece]:
    """The documents, or parts of them, in tokens [start, stop)."""
    first, last = dataset.document_at(np.array([start, stop - 1])).tolist()
    borders = dataset.document_starts(np.arange(first, last + 2)).tolist()
    documents = zip(range(first, last + 1), borders[:-1], borders[1:], strict=True)
    found = [
        (d, max(start, begin) - begin, min(stop, end) - max(start, begin)) for d, begin, end in documents
    ]
    return [Piece(dataset, *piece) for piece in found if piece[-1]]


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
