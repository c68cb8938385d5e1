"""Verification: candidate pairs stay pairs only if the exact Jaccard similarity of their n-grams reaches the threshold."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from datatrove.data import Document

from megalm import atomic
from megalm.corpus.dedup.catalog import KNOWN, PLACE_BITS, SHARD_BITS, documents_in, number_of
from megalm.corpus.dedup.hashing import Hashes, hash_words
from megalm.corpus.dedup.runs import Rows, Run, load_rows, ranges, run_paths, save_rows
from megalm.corpus.dedup.shingles import shingle
from megalm.corpus.dedup.task import Task

_OPEN_SHARDS = 64
_ITEM = np.dtype(np.uint64).itemsize


class WriteShingles(Task):
    """Leaves in `work`/shingles the sets of n-grams of a task's documents that are in a pair."""

    name = "shingles"

    def __init__(self, work: Path, ngram: int):
        super().__init__()
        self.folder, self.ngram = work, ngram

    def work(self, documents: Iterable[Document], rank: int, world_size: int) -> None:
        """Write the sets of the shard `rank`."""
        end = number_of(rank, documents_in(self.folder / "catalog", rank))
        wanted = self._paired(number_of(rank, 0), end)
        write_sets(self.folder, rank, documents, wanted, self.ngram)

    def _paired(self, low: int, high: int) -> Iterator[int]:
        last = -1
        for rows in ranges([Run(path) for path in run_paths(self.folder / "paired")], low, high, columns=1):
            for number in rows[0].tolist():
                if number != last:
                    yield number
                last = number


class VerifyPairs(Task):
    """Leaves in `work`/verified the pairs of `work`/pairs whose exact similarity is at least `threshold`."""

    name = "verify"

    def __init__(self, work: Path, indexes: list[Path], threshold: float):
        super().__init__()
        self.folder, self.indexes, self.threshold = work, indexes, threshold

    def work(self, documents: Iterable[Document], rank: int, world_size: int) -> None:
        """Judge the pairs that task `rank` found."""
        sets = ShingleSets(self.folder, self.indexes)
        for path in run_paths(self.folder / "pairs", rank):
            pairs = load_rows(path)
            kept = [
                i
                for i, (first, second) in enumerate(zip(*pairs.tolist(), strict=True))
                if jaccard(sets[first], sets[second]) >= self.threshold
            ]
            save_rows(self.folder / "verified" / path.name, pairs[:, kept])


class ShingleSets:
    """The sets of n-grams that were written for documents of a corpus and of indexes, by number."""

    def __init__(self, folder: Path, indexes: list[Path]):
        self._folder, self._indexes = folder, indexes
        self._open: dict[int, tuple[Rows, Path]] = {}

    def __getitem__(self, number: int) -> Hashes:
        shard = number >> PLACE_BITS
        if shard not in self._open:
            if len(self._open) == _OPEN_SHARDS:
                self._open.pop(next(iter(self._open)))
            self._open[shard] = self._load(shard)
        ends, path = self._open[shard]
        local = number & ((1 << (PLACE_BITS + SHARD_BITS)) - 1) if number >= KNOWN else number
        i = int(np.searchsorted(ends[0], np.uint64(local)))
        begin, end = int(ends[1, i - 1]) if i else 0, int(ends[1, i])
        return np.fromfile(path, np.uint64, end - begin, offset=begin * _ITEM)

    def _load(self, shard: int) -> tuple[Rows, Path]:
        folder, known = self._folder, KNOWN >> PLACE_BITS
        if shard >= known:
            folder, shard = self._indexes[(shard - known) >> SHARD_BITS], shard & ((1 << SHARD_BITS) - 1)
        return load_rows(ends_path(folder, shard)), sets_path(folder, shard)


def write_sets(
    folder: Path, shard: int, documents: Iterable[Document], wanted: Iterator[int], ngram: int
) -> None:
    """Write the sets of n-grams of the `wanted` documents (ascending numbers) of a shard."""
    numbers, ends, end = [], [], 0
    following = next(wanted, None)
    with atomic.open_atomic(sets_path(folder, shard)) as file:
        for place, document in enumerate(documents):
            if number_of(shard, place) != following:
                continue
            shingles = np.unique(shingle(hash_words([document.text]), ngram).hashes)
            file.write(shingles.tobytes())
            end += len(shingles)
            numbers.append(following)
            ends.append(end)
            following = next(wanted, None)
    save_rows(ends_path(folder, shard), np.array([numbers, ends], np.uint64).reshape(2, -1))


def jaccard(first: Hashes, second: Hashes) -> float:
    """|A and B| / |A or B| of two sorted sets."""
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / max(1, len(first) + len(second) - common)


def sets_path(folder: Path, shard: int) -> Path:
    """The n-grams of a shard's documents, one set after the other."""
    return folder / "shingles" / f"{shard:05d}.sets"


def ends_path(folder: Path, shard: int) -> Path:
    """Rows (document, end of its set)."""
    return folder / "shingles" / f"{shard:05d}.npy"
