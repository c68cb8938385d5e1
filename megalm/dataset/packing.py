"""Packs whole documents into samples of one length with little padding: first-fit decreasing."""

import heapq
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
LongDocuments = Literal["cut", "truncate", "drop"]
"""What becomes of a document that no sample holds: cut into several pieces, its end lost, or left out."""


@dataclass(frozen=True)
class Packs:
    """Which pieces of which documents make which pack; pack p holds the pieces [borders[p], borders[p + 1])."""

    document_P: Int64
    """Of each piece, in the order of the packs."""
    first_P: Int64
    """Number of the piece's first label in its document, from 0: the label of token i is token i + 1."""
    labels_P: Int64
    """How many labels the piece has, which is how much of the pack it takes."""
    borders: Int64
    capacity: int
    dropped: int
    """Documents that are in no pack: too long ones (`drop`), and those without a label, of fewer than two tokens."""
    cut: int
    """Documents that are in no pack whole: too long ones in several pieces (`cut`) or without their end (`truncate`)."""

    @property
    def count(self) -> int:
        """Number of packs."""
        return len(self.borders) - 1

    @property
    def efficiency(self) -> float:
        """Share of the packs that is not padding."""
        return float(self.labels_P.sum()) / max(1, self.count * self.capacity)

    def summary(self) -> dict[str, float]:
        """Return the figures by which packings are compared."""
        return {
            "packs": self.count,
            "pieces": len(self.document_P),
            "left_out": self.dropped,
            "cut": self.cut,
            "efficiency": self.efficiency,
        }


def pack_documents(lengths_D: Int64, capacity: int, long_documents: LongDocuments = "cut") -> Packs:
    """Pack documents of so many tokens into packs of `capacity` labels each.

    A document of n tokens has n - 1 labels. Longer ones are cut so that each label is in one piece. A pack's pieces stand
    in the order of their lengths, the longest first. Takes O(n) memory and, for n documents, about O(n log n) time.
    """
    labels_D = np.asarray(lengths_D, np.int64) - 1
    document_D = np.flatnonzero((labels_D > 0) & ((labels_D <= capacity) | (long_documents != "drop")))
    dropped = len(labels_D) - len(document_D)
    labels_D = labels_D[document_D]
    cut = int((labels_D > capacity).sum())
    if long_documents == "cut":
        pieces_D = -(-labels_D // capacity)
        document_P = np.repeat(document_D, pieces_D)
        place_P = np.arange(len(document_P)) - np.repeat(np.cumsum(pieces_D) - pieces_D, pieces_D)
        first_P = place_P * capacity
        labels_P = np.minimum(np.repeat(labels_D, pieces_D) - first_P, capacity)
    else:
        document_P, labels_P = document_D, np.minimum(labels_D, capacity)
        first_P = np.zeros_like(document_P)
    pack_P, packs = first_fit_decreasing(labels_P, capacity)
    order = np.lexsort((document_P, -labels_P, pack_P))
    borders = np.searchsorted(pack_P[order], np.arange(packs + 1))
    return Packs(document_P[order], first_P[order], labels_P[order], borders, capacity, dropped, cut)


def one_a_pack(packs: Packs) -> Packs:
    """Return the same pieces, each in a pack of its own, in the order of the documents."""
    order = np.lexsort((packs.first_P, packs.document_P))
    return replace(
        packs,
        document_P=packs.document_P[order],
        first_P=packs.first_P[order],
        labels_P=packs.labels_P[order],
        borders=np.arange(len(order) + 1),
    )


def first_fit_decreasing(sizes_P: Int64, capacity: int) -> tuple[Int64, int]:
    """Return the bin of each item, and the number of bins.

    Items are taken by size, the largest first and equal ones by number, and each goes into the first bin that has room
    for it (Johnson 1973; at most 11/9 of the best number of bins + 1). Sizes are from 1 to `capacity`.

    Neighbouring bins of equal room are kept as one run, and all items of one size are placed together, as many as a run
    takes at a time. A tree over the possible rooms tells the first run that has at least some room.
    """
    order = np.argsort(-sizes_P, kind="stable")
    sizes, counts = np.unique(sizes_P, return_counts=True)
    runs = _Runs(capacity)
    placed: list[tuple[int, int, int]] = []  # first bin, number of items, items a bin
    bins = 0
    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while count:
            found = runs.take_first(size)
            if found is None:
                each = capacity // size
                found = (bins, -(-count // each), capacity)
                bins += found[1]
            first, width, room = found
            each = room // size
            full, rest = divmod(min(count, width * each), each)
            runs.add(first, full, room - each * size)
            runs.add(first + full, 1 if rest else 0, room - rest * size)
            used = full + (1 if rest else 0)
            runs.add(first + used, width - used, room)
            placed.append((first, full * each + rest, each))
            count -= full * each + rest
    bin_P = np.empty(len(sizes_P), np.int64)
    bin_P[order] = _bins_of(placed)
    return bin_P, bins


def _bins_of(placed: list[tuple[int, int, int]]) -> Int64:
    """Return the bin of each item in the order of placing."""
    if not placed:
        return np.zeros(0, np.int64)
    first, items, each = np.array(placed, np.int64).T
    begin = np.repeat(np.cumsum(items) - items, items)
    return np.repeat(first, items) + (np.arange(items.sum()) - begin) // np.repeat(each, items)


class _Runs:
    """Runs of bins by their room, and the first of them with at least some room in O(log capacity)."""

    NONE = 1 << 62

    def __init__(self, capacity: int) -> None:
        self._leaves = 1 << capacity.bit_length()
        # a heap a room: (first bin, number of bins); the tree holds the first bin of each heap, and the least of each pair
        self._heaps: dict[int, list[tuple[int, int]]] = {}
        self._tree = [self.NONE] * (2 * self._leaves)

    def add(self, first: int, width: int, room: int) -> None:
        """Add `width` bins of `room` from number `first` on; full ones are never asked for."""
        if width and room:
            heap = self._heaps.setdefault(room, [])
            heapq.heappush(heap, (first, width))
            if heap[0][0] == first:
                self._update(room, first)

    def take_first(self, room: int) -> tuple[int, int, int] | None:
        """Remove and return the run that begins first of those with at least `room`: first bin, bins, its room."""
        found = self._least_from(room)
        if found is None:
            return None
        heap = self._heaps[found]
        first, width = heapq.heappop(heap)
        self._update(found, heap[0][0] if heap else self.NONE)
        return first, width, found

    def _least_from(self, room: int) -> int | None:
        """The room, at least `room`, whose first run begins first."""
        node, best, least = room + self._leaves, room + self._leaves, self._tree[room + self._leaves]
        while node > 1:
            if not node & 1 and self._tree[node + 1] < least:
                best, least = node + 1, self._tree[node + 1]
            node >>= 1
        if least == self.NONE:
            return None
        while best < self._leaves:
            best = 2 * best if self._tree[2 * best] == least else 2 * best + 1
        return best - self._leaves

    def _update(self, room: int, first: int) -> None:
        node = room + self._leaves
        self._tree[node] = first
        while node > 1:
            node >>= 1
            self._tree[node] = min(self._tree[2 * node], self._tree[2 * node + 1])
