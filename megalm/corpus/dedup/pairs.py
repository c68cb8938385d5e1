"""The first stages of de-duplication: keys of documents go to sorted runs, and equal keys give pairs of documents."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from datatrove.data import Document
from numpy.typing import NDArray

from megalm.corpus.dedup.catalog import (
    KNOWN,
    Catalog,
    CatalogWriter,
    Preference,
    best_first,
    index_mark,
    number_of,
)
from megalm.corpus.dedup.hashing import in_batches
from megalm.corpus.dedup.runs import Rows, Run, RunWriter, groups, key_range, members, ranges, run_paths
from megalm.corpus.dedup.signatures import KeyMaker
from megalm.corpus.dedup.task import Task

Pair = tuple[NDArray[np.uint64], NDArray[np.uint64]]

WINDOW = 32
"""With verification, a document is compared with so many that follow it under the same key."""


class WriteKeys(Task):
    """Leaves rows (key, document) of a task's documents in `work`/keys and their entries in `work`/catalog."""

    name = "keys"

    def __init__(self, work: Path, maker: KeyMaker, preference: Preference):
        super().__init__()
        self.folder, self.maker, self.preference = work, maker, preference

    def work(self, documents: Iterable[Document], rank: int, world_size: int) -> None:
        """Write the runs and the catalog of the shard `rank`."""
        runs = RunWriter(self.folder / "keys", rank, 2)
        place = 0
        with CatalogWriter(self.folder / "catalog", rank, self.preference) as catalog:
            for batch in in_batches(documents):
                catalog.add(batch)
                keys, filled = self.maker.keys([document.text for document in batch])
                numbers = np.arange(place, place + len(batch), dtype=np.uint64) + np.uint64(
                    number_of(rank, 0)
                )
                runs.add(keys[filled].reshape(-1), np.repeat(numbers[filled], keys.shape[1]))
                place += len(batch)
        runs.close()


class FindPairs(Task):
    """Leaves rows (document, document) that share a key of the task's range in `work`/pairs.

    For clusters alone each key's documents are tied to the first of them. With `every` (for verification) all pairs
    are listed, of more than `WINDOW` + 1 documents those at most so far apart in the order in which copies stay, and the
    documents in them in `work`/paired.
    """

    name = "pairs"

    def __init__(self, work: Path, indexes: list[Path], every: bool):
        super().__init__()
        self.folder, self.indexes, self.every = work, indexes, every

    def work(self, documents: Iterable[Document], rank: int, world_size: int) -> None:
        """Write the pairs of one range of keys."""
        pairs = RunWriter(self.folder / "pairs", rank, 2, unique=True)
        paired = RunWriter(self.folder / "paired", rank, 1, unique=True)
        catalog = Catalog(self.folder / "catalog", [index / "catalog" for index in self.indexes])
        for rows in self._rows(*key_range(rank, world_size)):
            for first, second in _every_pair(rows, catalog) if self.every else _stars(rows):
                low, high = np.minimum(first, second), np.maximum(first, second)
                wanted = (low != high) & (low < KNOWN)  # both from an index: nothing to decide
                pairs.add(low[wanted], high[wanted])
                if self.every:
                    paired.add(np.unique(np.concatenate([low[wanted], high[wanted]])))
        pairs.close()
        if self.every:
            paired.close()

    def _rows(self, low: int, high: int) -> Iterator[Rows]:
        runs = [Run(path) for path in run_paths(self.folder / "keys")]
        for number, index in enumerate(self.indexes):
            runs += [Run(path, index_mark(number)) for path in run_paths(index / "keys")]
        return ranges(runs, low, high, columns=2)


def _stars(rows: Rows) -> Iterator[Pair]:
    """Each document under a shared key with the first of them."""
    starts, ends = groups(rows)
    yield np.repeat(rows[1][starts], ends - starts), rows[1][members(starts, ends)]


def _every_pair(rows: Rows, catalog: Catalog) -> Iterator[Pair]:
    """Each document under a shared key with the `WINDOW` next ones, in the order in which copies stay."""
    starts, ends = groups(rows)
    keys, numbers = rows[:, members(starts, ends)]
    documents, inverse = np.unique(numbers, return_inverse=True)
    place = np.empty(len(documents), np.int64)
    place[best_first(catalog.entries(documents))] = np.arange(len(documents))
    order = np.lexsort((place[inverse], keys))
    keys, numbers = keys[order], numbers[order]
    for distance in range(1, WINDOW + 1):
        same = keys[distance:] == keys[:-distance]
        if not same.any():
            return
        yield numbers[:-distance][same], numbers[distance:][same]
