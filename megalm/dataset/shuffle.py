"""Second pass of a build: sorted runs become one shuffled .bin/.idx a split, in bounded memory."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from megalm.dataset.chunks import SPLIT_SHIFT, Run
from megalm.dataset.indexed import IndexedDatasetWriter

BUCKET_BYTES = 128 << 20


def write_split(
    writer: IndexedDatasetWriter, runs: list[Run], split: int, tokens: int, advance: Callable[[int], Any]
) -> None:
    """Append the `tokens` of number `split` that the `runs` hold, in the order of their random keys.

    The keys are cut into ranges of about equal filling, each small enough for memory; `advance` is told the
    tokens written. Documents of equal key keep the order of the runs, so the result does not depend on who
    made them when.
    """
    buckets = max(1, -(-tokens * writer.dtype.itemsize // BUCKET_BYTES))
    borders = [(split << SPLIT_SHIFT) + (i << SPLIT_SHIFT) // buckets for i in range(buckets + 1)]
    for low, high in pairwise(borders):
        parts = [run.read(low, high, writer.dtype) for run in runs]
        keys, lengths, ids = (np.concatenate(column) for column in zip(*parts, strict=True))
        if not len(keys):
            continue
        order = np.argsort(keys, kind="stable")
        ends = np.cumsum(lengths)
        starts = (ends - lengths)[order].tolist()
        documents = [ids[a:b] for a, b in zip(starts, ends[order].tolist(), strict=True)]
        writer.add_documents(np.concatenate(documents), lengths[order])
        advance(len(ids))
