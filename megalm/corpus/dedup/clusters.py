"""Joins pairs to clusters of copies and decides which document of each stays: one task, in bounded memory."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from datatrove.data import Document
from numpy.typing import NDArray

from megalm.corpus.dedup.catalog import KNOWN, Catalog, documents_in, index_mark, number_of, shards_in
from megalm.corpus.dedup.components import stars
from megalm.corpus.dedup.runs import TOP, Rows, Run, RunWriter, load_rows, ranges, run_paths
from megalm.corpus.dedup.task import Task

PAIRS_AT_ONCE = 1 << 19
DOCUMENTS_AT_ONCE = 1 << 20


class Cluster(Task):
    """Leaves rows (document, the one that stays, size of the cluster) of the documents in clusters as runs in `work`/decisions.

    Clusters are the connected components of the pairs, so they do not depend on the order in which pairs come.
    Everything but the largest cluster, of which a document takes about 210 bytes, passes through files in pieces.
    """

    name = "clusters"

    def __init__(self, work: Path, indexes: list[Path], pairs: str):
        super().__init__()
        self.folder, self.indexes, self.pairs = work, indexes, pairs

    def work(self, documents: Iterable[Document], rank: int, world_size: int) -> None:
        """Decide for all documents."""
        scratch = self.folder / "joining"
        shutil.rmtree(scratch, ignore_errors=True)
        labels = RunWriter(scratch / "labels", 0, 2)
        for label, member in stars(self._pairs(), scratch / "stars"):
            labels.add(member, label)
        labels.close()
        ranked = RunWriter(scratch / "ranked", 0, 6)
        for columns in self._ranked(scratch / "labels"):
            ranked.add(*columns)
        ranked.close()
        decisions = RunWriter(self.folder / "decisions", 0, 3)
        for rows in ranges(_runs(scratch / "ranked"), 0, TOP, columns=6):
            decisions.add(*_decisions(rows))
        decisions.close()
        shutil.rmtree(scratch)

    def _pairs(self) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint64]]]:
        for path in run_paths(self.folder / self.pairs):
            pairs = load_rows(path)
            for i in range(0, pairs.shape[1], PAIRS_AT_ONCE):
                first, second = np.array(pairs[:, i : i + PAIRS_AT_ONCE])
                yield first, second

    def _ranked(self, labels: Path) -> Iterator[list[NDArray[np.uint64]]]:
        """Columns label, source, score, hashes of id and text, document: in the order of these the best comes first."""
        catalog = Catalog(self.folder / "catalog", [index / "catalog" for index in self.indexes])
        for low, high in self._spans():
            for numbers, label in ranges(_runs(labels), low, high, columns=2):
                entries = catalog.entries(numbers)
                yield [
                    label,
                    entries["source"],
                    descending(entries["score"]),
                    entries["id"],
                    entries["text"],
                    numbers,
                ]

    def _spans(self) -> Iterator[tuple[int, int]]:
        yield from spans(self.folder / "catalog")
        for number, index in enumerate(self.indexes):
            mark = index_mark(number)
            yield from ((mark | low, mark | high) for low, high in spans(index / "catalog"))


def spans(catalog: Path) -> Iterator[tuple[int, int]]:
    """Ranges of the numbers of all documents, each of one shard or of several that have few documents together."""
    begin, end, held = 0, 0, 0
    for shard in shards_in(catalog):
        count = documents_in(catalog, shard)
        if held and held + count > DOCUMENTS_AT_ONCE:
            yield begin, end
            held = 0
        if not held:
            begin = number_of(shard, 0)
        end, held = number_of(shard, count), held + count
    if held:
        yield begin, end


def descending(scores: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Integers in the opposite order of `scores`, equal where these are."""
    bits = (0.0 - scores).view(np.uint64)
    sign = np.uint64(1 << 63)
    return np.where(bits & sign, ~bits, bits | sign)


def decisions_of(work: Path, shard: int) -> Iterator[Rows]:
    """Rows (document, the one that stays, size of the cluster) of the documents of a shard, by document, in pieces."""
    end = number_of(shard, documents_in(work / "catalog", shard))
    return ranges(_runs(work / "decisions"), number_of(shard, 0), end, columns=3)


def _runs(folder: Path) -> list[Run]:
    return [Run(path) for path in run_paths(folder)]


def _decisions(rows: Rows) -> Rows:
    """The rows of clusters, best first, as rows (document, the one that stays, size); those of indexes are left out."""
    labels, numbers = rows[0], rows[-1]
    fresh = np.ones(len(labels), bool)
    fresh[1:] = labels[1:] != labels[:-1]
    cluster = np.cumsum(fresh) - 1
    sizes = np.bincount(cluster)[cluster].astype(np.uint64) if len(labels) else labels
    decided = np.stack([numbers, numbers[fresh][cluster], sizes])
    return decided[:, numbers < np.uint64(KNOWN)]
