"""The features of all training documents as a sparse matrix in temporary files, so that memory does not grow with them."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megalm.corpus.classify.features import Counts, weigh

_BLOCK = 1 << 22  # entries that are worked on at a time


class Matrix(NamedTuple):
    """A sparse matrix by rows, none of them empty: entries offsets[i] to offsets[i + 1] are those of row i."""

    entries: NDArray[np.uint32]
    """The column of each entry."""
    values: NDArray[np.float32]
    offsets: NDArray[np.int64]
    columns: int

    def times(self, weights_LF: NDArray[np.float64]) -> NDArray[np.float64]:
        """The product with the transpose of `weights_LF`, [rows, L]."""
        product = np.empty((len(self.offsets) - 1, len(weights_LF)))
        for first, last in self._blocks():
            places = slice(self.offsets[first], self.offsets[last])
            columns, values = self.entries[places].astype(np.intp), self.values[places]
            starts = self.offsets[first:last] - self.offsets[first]
            for output, weights_F in enumerate(weights_LF):
                product[first:last, output] = np.add.reduceat(values * weights_F[columns], starts)
        return product

    def transposed_times(self, rows_RL: NDArray[np.float64]) -> NDArray[np.float64]:
        """The product of the transpose of `rows_RL` with this matrix, [L, columns]."""
        product = np.zeros((rows_RL.shape[1], self.columns))
        for first, last in self._blocks():
            places = slice(self.offsets[first], self.offsets[last])
            columns, values = self.entries[places].astype(np.intp), self.values[places]
            lengths = np.diff(self.offsets[first : last + 1])
            for output, total_F in enumerate(product):
                weights = values * np.repeat(rows_RL[first:last, output], lengths)
                total_F += np.bincount(columns, weights, self.columns)
        return product

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Rows in groups of about `_BLOCK` entries, a row at least."""
        first, rows = 0, len(self.offsets) - 1
        while first < rows:
            last = int(np.searchsorted(self.offsets, self.offsets[first] + _BLOCK, "right")) - 1
            yield first, max(last, first + 1)
            first = max(last, first + 1)


class Rows:
    """Collects the n-grams of documents in unnamed temporary files of `folder`."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._buckets: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed with this object
        self._values: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed with this object
        self._lengths: list[int] = []
        self._borders: list[int] = []

    def add(self, counts: Counts) -> None:
        """Add a document, which must have n-grams."""
        self._buckets.write(counts.buckets.data)
        self._values.write(counts.values.data)
        self._lengths.append(len(counts.buckets))
        self._borders.append(counts.border)

    def __len__(self) -> int:
        """How many documents there are."""
        return len(self._lengths)

    def rarity(self, buckets: int, min_documents: int) -> NDArray[np.float32]:
        """The inverse document frequency of each bucket, ln((1 + documents) / (1 + documents with it)) + 1.

        It is 0 for what fewer than `min_documents` documents have, which so plays no part.
        """
        entries = self._map(self._buckets, np.uint32)
        documents = np.zeros(buckets, np.int64)
        for begin in range(0, len(entries), _BLOCK):
            documents += np.bincount(entries[begin : begin + _BLOCK], minlength=buckets)
        rarity = (np.log((1 + len(self)) / (1 + documents)) + 1).astype(np.float32)
        rarity[documents < min_documents] = 0
        return rarity

    def matrix(self, rarity: NDArray[np.float32]) -> Matrix:
        """The weighed documents; columns are the buckets whose rarity is above 0, in order. Called once, it changes the files."""
        entries, values = self._map(self._buckets, np.uint32), self._map(self._values, np.float32)
        offsets = np.concatenate([[0], np.cumsum(self._lengths)]).astype(np.int64)
        columns = np.flatnonzero(rarity)
        column_of = np.zeros(len(rarity), np.uint32)  # what plays no part becomes a zero in column 0
        column_of[columns] = np.arange(len(columns))
        for row, border in enumerate(self._borders):
            places = slice(offsets[row], offsets[row + 1])
            values[places] = weigh(values[places], rarity[entries[places]], border)
            entries[places] = column_of[entries[places]]
        return Matrix(entries, values, offsets, len(columns))

    def _map(self, file: IO[bytes], kind: type) -> Any:
        if not self._lengths:
            return np.empty(0, kind)
        file.flush()
        return np.asarray(np.memmap(file, kind, "r+", shape=(sum(self._lengths),)))
