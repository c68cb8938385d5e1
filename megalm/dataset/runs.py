"""Sorted runs of tokenized documents on disk: what the first pass of a build leaves for the second.

In a run's file a row's numbers of tokens and of bytes of names are those of all documents up to it, so that reading can begin
at any key.
"""

import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megalm import atomic

ROW = np.dtype([("key", "<u8"), ("offset", "<i8"), ("tokens", "<i8"), ("name", "<i8"), ("file", "<i4")])
"""Of a document: its key, where its text begins in which input, its number of tokens, the bytes of its name."""


@dataclass
class Documents:
    """Some documents: their rows, and what they hold, one document after another."""

    rows: NDArray[Any]
    tokens: NDArray[Any]
    counts: NDArray[np.uint8]
    """1 for each token that counts in the loss, 0 for the others; empty where all count."""
    names: NDArray[np.uint8]
    """UTF-8; empty where documents have none."""

    @classmethod
    def sorted(cls, parts: "Sequence[Documents]") -> "Documents":
        """Return the documents of all `parts` (at least one) by key; those of equal key keep their order."""
        rows = np.concatenate([part.rows for part in parts])
        order = np.argsort(rows["key"], kind="stable")
        lengths = [part.rows["tokens"] for part in parts]
        return cls(
            rows[order],
            _pick([part.tokens for part in parts], lengths, order),
            _pick([part.counts for part in parts], lengths, order),
            _pick([part.names for part in parts], [part.rows["name"] for part in parts], order),
        )


class Place(NamedTuple):
    """How much lies before a document: numbers of documents, tokens and bytes of names."""

    documents: int
    tokens: int
    names: int

    def plus(self, other: "Place") -> "Place":
        """Return the sum of both."""
        return Place(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: "Place") -> "Place":
        """Return what lies between."""
        return Place(*(a - b for a, b in zip(self, other, strict=True)))


class RunSize(NamedTuple):
    """Numbers of a run's documents, tokens, marks of tokens that count, and bytes of names."""

    documents: int
    tokens: int
    counts: int
    names: int


def write_run(path: Path, parts: Sequence[Documents]) -> RunSize:
    """Sort and save documents: rows, tokens, marks and names, one section after another."""
    ordered = Documents.sorted(parts)
    for column in ("tokens", "name"):
        ordered.rows[column] = np.cumsum(ordered.rows[column])
    sections = ordered.rows, ordered.tokens, ordered.counts, ordered.names
    with atomic.open_atomic(path) as file:
        for section in sections:
            file.write(section.data.cast("B") if section.size else b"")
    return RunSize(*map(len, sections))


class RunReader:
    """Gives the documents of a run in the order of their keys, a range of keys at a time, each once."""

    def __init__(self, path: Path, size: RunSize, dtype: np.dtype[Any], rows_at_once: int) -> None:
        """dtype: of the tokens. rows_at_once: how many rows are read ahead, which bounds the memory."""
        self._path, self._size, self._rows_at_once = path, size, rows_at_once
        self._dtypes = ROW, dtype, np.dtype("u1"), np.dtype("u1")
        self._begins = [0]
        for count, kind in zip(size[:-1], self._dtypes, strict=False):
            self._begins.append(self._begins[-1] + count * kind.itemsize)
        self._given = Place(0, 0, 0)
        self._ahead = np.empty(0, ROW)
        self._stop = size.documents
        self._descriptor = -1

    def open(self) -> None:
        """Keep the file open from now on; one that is not is opened for every range."""
        self._descriptor = os.open(self._path, os.O_RDONLY)

    def close(self) -> None:
        """Undo `open`."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def place_of(self, key: int) -> Place:
        """Return how much of the run has keys below `key`."""
        if not key:
            return Place(0, 0, 0)
        with self._opened() as descriptor:

            def key_of(row: int) -> int:
                return int.from_bytes(os.pread(descriptor, 8, row * ROW.itemsize), "little")

            row = bisect_left(range(self._size.documents), key, key=key_of)
            if not row:
                return Place(0, 0, 0)
            last = self._read(descriptor, 0, row - 1, 1)[0]
            return Place(row, int(last["tokens"]), int(last["name"]))

    def go_to(self, low: Place, high: Place) -> None:
        """Give from now on what lies between two places."""
        self._given, self._stop = low, high.documents
        self._ahead = np.empty(0, ROW)

    def below(self, key: int) -> Documents:
        """Return the documents not given yet whose keys are below `key`."""
        with self._opened() as descriptor:
            rows = self._rows_below(descriptor, key)
            before, end = self._given, self._given
            if len(rows):
                end = Place(before.documents + len(rows), int(rows["tokens"][-1]), int(rows["name"][-1]))
            rows["tokens"] = np.diff(rows["tokens"], prepend=before.tokens)
            rows["name"] = np.diff(rows["name"], prepend=before.names)
            tokens = end.tokens - before.tokens
            self._given = end
            return Documents(
                rows,
                self._read(descriptor, 1, before.tokens, tokens),
                self._read(descriptor, 2, before.tokens, tokens if self._size.counts else 0),
                self._read(descriptor, 3, before.names, end.names - before.names),
            )

    def _rows_below(self, descriptor: int, key: int) -> NDArray[Any]:
        parts = [self._ahead]
        read = self._given.documents + len(self._ahead)
        while read < self._stop and not (len(parts[-1]) and parts[-1]["key"][-1] >= key):
            count = min(self._rows_at_once, self._stop - read)
            parts.append(self._read(descriptor, 0, read, count))
            read += count
        rows = np.concatenate(parts)
        found = int(np.searchsorted(rows["key"], np.uint64(key)))
        self._ahead = rows[found:].copy()
        return rows[:found]

    def _read(self, descriptor: int, section: int, first: int, count: int) -> NDArray[Any]:
        """Return elements of a section."""
        values = np.empty(count, self._dtypes[section])
        if count:
            place = self._begins[section] + first * values.itemsize
            _fill(descriptor, values.view(np.uint8).data, place)
        return values

    @contextmanager
    def _opened(self) -> Iterator[int]:
        kept = self._descriptor >= 0
        descriptor = self._descriptor if kept else os.open(self._path, os.O_RDONLY)
        try:
            yield descriptor
        finally:
            if not kept:
                os.close(descriptor)


def _fill(descriptor: int, buffer: memoryview, offset: int) -> None:
    """Read until `buffer` is full: one call gives at most 2 GiB."""
    while len(buffer):
        count = os.preadv(descriptor, [buffer], offset)
        if not count:
            raise RuntimeError("a run of the build is cut short; remove the .build folder and build again")
        buffer, offset = buffer[count:], offset + count


def _pick(
    values: Sequence[NDArray[Any]], lengths: Sequence[NDArray[Any]], order: NDArray[np.int64]
) -> NDArray[Any]:
    """Return the pieces of all `values`, which have these lengths, in another order."""
    if not any(map(len, values)):
        return values[0]
    pieces: list[NDArray[Any]] = []
    for array, counts in zip(values, lengths, strict=True):
        borders = [0, *np.cumsum(counts, dtype=np.int64).tolist()]
        pieces += [array[a:b] for a, b in pairwise(borders)]
    return np.concatenate([pieces[i] for i in order.tolist()])
