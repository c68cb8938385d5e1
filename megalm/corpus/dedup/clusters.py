"""Joins pairs to clusters of copies and decides which document of each stays; a single task with a stated bound."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from datatrove.data import Document
from numpy.typing import NDArray

from megalm.corpus.dedup.catalog import KNOWN, Catalog, best_first
from megalm.corpus.dedup.runs import Rows, load_rows, run_paths, save_rows, sort_rows
from megalm.corpus.dedup.task import Task

PAIRS_AT_ONCE = 1 << 20

Places = NDArray[np.int64]


class Cluster(Task):
    """Leaves rows (document, the one that stays, size of the cluster) in `work`/decisions.npy.

    Clusters are the connected components of the pairs, so they do not depend on the order in which pairs come. Pairs
    are read piece by piece; memory is about 100 bytes for each document that is in a pair.
    """

    name = "clusters"

    def __init__(self, work: Path, indexes: list[Path], pairs: str):
        super().__init__()
        self.folder, self.indexes, self.pairs = work, indexes, pairs

    def work(self, documents: Iterable[Document], rank: int, world_size: int) -> None:
        """Decide for all documents."""
        numbers = self._paired()
        catalog = Catalog(self.folder / "catalog", [index / "catalog" for index in self.indexes])
        order = best_first(catalog.entries(numbers))
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        parents = np.arange(len(order))
        for path in run_paths(self.folder / self.pairs):
            pairs = load_rows(path)
            for i in range(0, pairs.shape[1], PAIRS_AT_ONCE):
                first, second = (
                    place[np.searchsorted(numbers, side[i : i + PAIRS_AT_ONCE])] for side in pairs
                )
                join(parents, first, second)
        save_rows(
            decisions_path(self.folder), _decisions(numbers[order], roots(parents, np.arange(len(order))))
        )

    def _paired(self) -> NDArray[np.uint64]:
        numbers = np.empty(0, np.uint64)
        for path in run_paths(self.folder / "paired"):
            numbers = np.union1d(numbers, load_rows(path)[0])
        return numbers


def join(parents: Places, first: Places, second: Places) -> None:
    """Unite the sets of first[i] and second[i] for all i; a set's root is its smallest member.

    Every round ties the larger root of each pair to the smallest root it meets, and drops the pairs that are united.
    """
    while len(first):
        found = roots(parents, np.concatenate([first, second]))
        first, second = found[: len(first)], found[len(first) :]
        apart = first != second
        first, second = first[apart], second[apart]
        np.minimum.at(parents, np.maximum(first, second), np.minimum(first, second))


def roots(parents: Places, members: Places) -> Places:
    """The root of each member's set; members come to hang directly on it.

    Every round halves the paths among the members themselves, so that a long chain takes few.
    """
    while True:
        found = parents[members]
        above = parents[found]
        if (above == found).all():
            return found
        parents[members] = above


def decisions_path(work: Path) -> Path:
    """Rows (document, the one that stays, size of the cluster), by document; those of indexes are left out."""
    return work / "decisions.npy"


def _decisions(ordered: NDArray[np.uint64], root: Places) -> Rows:
    sizes = np.bincount(root, minlength=len(root))[root]
    wanted = (sizes > 1) & (ordered < np.uint64(KNOWN))
    rows = np.stack([ordered, ordered[root], sizes.astype(np.uint64)])
    return sort_rows(rows[:, wanted])
