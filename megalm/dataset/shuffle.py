"""Second pass of a build: sorted runs become one shuffled .bin/.idx a split, in bounded memory."""

import contextlib
import resource
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from megalm.dataset.chunks import SPLIT_SHIFT
from megalm.dataset.origins import OriginColumns
from megalm.dataset.runs import ROW, Documents, RunReader, RunSize
from megalm.dataset.writer import IndexedDatasetWriter

BUCKET_BYTES = 128 << 20
ROWS_BYTES = 64 << 20  # read ahead of all runs together
LEAST_ROWS = 64


@contextlib.contextmanager
def open_runs(runs: Sequence[tuple[Path, RunSize]], dtype: np.dtype[Any]) -> Iterator[list[RunReader]]:
    """Yield readers of `runs`, as many of them open as half of the process's file descriptors allow."""
    rows = max(LEAST_ROWS, ROWS_BYTES // ROW.itemsize // max(1, len(runs)))
    readers = [RunReader(path, size, dtype, rows) for path, size in runs]
    with contextlib.ExitStack() as stack:
        for reader in readers[: resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2]:
            reader.open()
            stack.callback(reader.close)
        yield readers


def write_split(
    writer: IndexedDatasetWriter,
    readers: Sequence[RunReader],
    split: int,
    tokens: int,
    advance: Callable[[int], Any],
) -> None:
    """Append the `tokens` of number `split` that the runs hold, in the order of their random keys.

    Splits are asked for in their order, for runs are read once from begin to end. The keys are cut into ranges of about
    equal filling, each small enough for memory; `advance` is told the tokens written. Documents of equal key keep the
    order of the runs, so the result does not depend on who made them when.
    """
    buckets = max(1, -(-tokens * writer.dtype.itemsize // BUCKET_BYTES))
    borders = [(split << SPLIT_SHIFT) + (i << SPLIT_SHIFT) // buckets for i in range(buckets + 1)]
    for _, high in pairwise(borders):
        ordered = Documents.sorted([reader.below(high) for reader in readers])
        rows = ordered.rows
        if len(rows):
            origins = OriginColumns(rows["offset"], rows["file"], rows["name"], ordered.names)
            writer.add_documents(ordered.tokens, rows["tokens"], counts=ordered.counts, origins=origins)
            advance(len(ordered.tokens))
