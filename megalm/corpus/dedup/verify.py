"""Verification: candidate pairs stay pairs only if the exact Jaccard similarity of their n-grams reaches the threshold."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from datatrove.data import Document
from numpy.typing import NDArray

from megalm import atomic
from megalm.corpus.dedup.catalog import KNOWN, SHARD_BITS, PLACE_BITS, index_mark, number_of
from megalm.corpus.dedup.hashing import Hashes, hash_words
from megalm.corpus.dedup.runs import RunWriter, load_rows, run_paths, save_rows, slice_rows
from megalm.corpus.dedup.shingles import shingle
from megalm.corpus.dedup.task import Task


class WriteShingles(Task):
    """Leaves the sets of n-grams of a task's documents that are in a pair in `target`/shingles."""

    name = "shingles"

    def __init__(self, work: Path, ngram: int):
        super().__init__()
        self.folder, self.ngram = work, ngram

    def work(self, documents: Iterable[Document], rank: int, world_size: int) -> None:
        """Write the sets of the shard `rank`."""
        wanted = paired_documents(self.folder, number_of(rank, 0), number_of(rank + 1, 0))
        places = iter((wanted & np.uint64((1 << PLACE_BITS) - 1)).tolist())
        next_place = next(places, None)
        ends = [0]
        with atomic.open_atomic(sets_path(self.folder, rank)) as file:
            for place, document in enumerate(documents):
                if place == next_place:
                    shingles = np.unique(shingle(hash_words([document.text]), self.ngram).hashes)
                    file.write(shingles.tobytes())
                    ends.append(ends[-1] + len(shingles))
                    next_place = next(places, None)
        save_rows(ends_path(self.folder, rank), np.stack([wanted, np.array(ends[1:], np.uint64)]))
