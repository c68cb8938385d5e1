"""Second pass of a build: sorted runs become one shuffled .bin/.idx a split, piece by piece, in bounded memory.

A piece is a range of the random keys of one split. Where its documents lie in the files follows from how much each run holds
below the range, so pieces are written in any order, by any process, at once.
"""

import contextlib
import json
import resource
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from megalm import atomic
from megalm.dataset.chunks import SPLIT_SHIFT, read_counts, run_path
from megalm.dataset.indexed import token_dtype
from megalm.dataset.placing import Edge, Layout, PlacedWriter
from megalm.dataset.plan import Plan
from megalm.dataset.runs import ROW, Documents, Place, RunReader, RunSize
from megalm.errors import UserError
from megalm.splits import SPLITS

BUCKET_BYTES = 128 << 20  # tokens sorted in memory at a time, at most
LEAST_BUCKET_BYTES = 4 << 20
LEAST_BUCKETS = 64  # work for so many workers, unless buckets would be too small
MOST_PIECES = 1024  # each opens all runs
ROWS_BYTES = 64 << 20  # read ahead of all runs together
LEAST_ROWS = 64
NOTHING = Place(0, 0, 0)


class Piece(NamedTuple):
    """Buckets [first, stop) of a split, which hold about so many tokens."""

    split: int
    first: int
    stop: int
    tokens: int


@dataclass(frozen=True)
class Arrangement:
    """What the second pass reads and makes: runs by chunk and number, the size of each split, its buckets, and all pieces."""

    runs: list[tuple[str, int, RunSize]]
    splits: list[Place]
    buckets: list[int]
    pieces: list[Piece]

    @classmethod
    def of(cls, plan: Plan, folder: Path) -> "Arrangement":
        """Return the arrangement of what the first pass left in `folder`."""
        counts = [read_counts(folder, chunk.key) for chunk in plan.chunks]
        runs = [
            (chunk.key, number, size)
            for chunk, count in zip(plan.chunks, counts, strict=True)
            for number, size in enumerate(count.runs)
        ]
        splits = [NOTHING] * len(SPLITS)
        for count in counts:
            splits = [size.plus(more) for size, more in zip(splits, count.splits, strict=True)]
        if not any(size.tokens for size in splits):
            raise UserError("the inputs hold no text; check the files and the key that the text is under")
        prompt_key = plan.recipe.extras.prompt_key
        if prompt_key is not None and not any(count.masked for count in counts):
            raise UserError(
                f"no document has a prompt under '{prompt_key}'; name the key that holds it, or leave it out"
            )
        size = token_dtype(plan.recipe.vocab_size).itemsize
        total = sum(split.tokens for split in splits) * size
        bucket = min(BUCKET_BYTES, max(LEAST_BUCKET_BYTES, total // LEAST_BUCKETS))
        buckets = [-(-split.tokens * size // bucket) for split in splits]
        together = -(-sum(buckets) // MOST_PIECES)
        pieces = [
            Piece(split, first, stop, whole.tokens * stop // count - whole.tokens * first // count)
            for split, (whole, count) in enumerate(zip(splits, buckets, strict=True))
            for first, stop in pairwise([*range(0, count, together), count])
        ]
        return cls(runs, splits, buckets, pieces)

    def save(self, folder: Path) -> None:
        """Write the arrangement, which says that the files are there to be filled."""
        content = [self.runs, self.splits, self.buckets, self.pieces]
        atomic.write_text(arrangement_path(folder), json.dumps(content))

    @classmethod
    def read(cls, folder: Path) -> "Arrangement":
        """Return what was saved in `folder`."""
        runs, splits, buckets, pieces = json.loads(arrangement_path(folder).read_text(encoding="utf-8"))
        return cls(
            [(key, number, RunSize(*size)) for key, number, size in runs],
            [Place(*size) for size in splits],
            buckets,
            [Piece(*piece) for piece in pieces],
        )

    def layouts(self, plan: Plan, folder: Path) -> dict[int, Layout]:
        """Return the files of each split that is not empty, by its number."""
        extras = plan.recipe.extras
        inputs = [file.path for file in plan.files] if extras.traced else None
        dtype, masked = token_dtype(plan.recipe.vocab_size), extras.masked
        return {
            split: Layout(out_folder(folder) / SPLITS[split], dtype, size, masked, inputs)
            for split, size in enumerate(self.splits)
            if size.tokens
        }


def arrangement_path(folder: Path) -> Path:
    """Return the file that says that the second pass has begun."""
    return folder / "shuffle.json"


def out_folder(folder: Path) -> Path:
    """Return where the datasets are made."""
    return folder / "out"


def piece_marker(folder: Path, number: int) -> Path:
    """Return the file that says that a piece is written, and holds its edges."""
    return out_folder(folder) / f"piece-{number:05d}.json"


def read_edges(folder: Path, number: int) -> list[Edge]:
    """Return the bytes of the mask that a piece shares with others."""
    edges = json.loads(piece_marker(folder, number).read_text(encoding="utf-8"))
    return [(byte, value) for byte, value in edges]


def arrange(plan: Plan, folder: Path) -> Arrangement:
    """Begin the second pass in `folder`, or go on with the one that lies there."""
    if arrangement_path(folder).exists():
        return Arrangement.read(folder)
    shutil.rmtree(out_folder(folder), ignore_errors=True)
    arrangement = Arrangement.of(plan, folder)
    for layout in arrangement.layouts(plan, folder).values():
        layout.allocate()
    arrangement.save(folder)
    return arrangement


def write_piece(arrangement: Arrangement, number: int, layout: Layout, folder: Path) -> None:
    """Write the documents of a piece, in the order of their random keys, to their places, then the marker that says so.

    The keys are cut into ranges of about equal filling, each small enough for memory. Documents of equal key keep the order
    of the runs, so the result does not depend on who made them when.
    """
    piece = arrangement.pieces[number]
    begin, buckets = piece.split << SPLIT_SHIFT, arrangement.buckets[piece.split]
    borders = [begin + (i << SPLIT_SHIFT) // buckets for i in range(piece.first, piece.stop + 1)]
    runs = [(run_path(folder, key, place), size) for key, place, size in arrangement.runs]
    with open_runs(runs, layout.dtype) as readers:
        place = NOTHING
        for reader in readers:
            low = reader.place_of(borders[0])
            reader.go_to(low, reader.place_of(borders[-1]))
            place = place.plus(low.minus(reader.place_of(begin)))
        with PlacedWriter(layout, place) as writer:
            for high in borders[1:]:
                writer.add(Documents.sorted([reader.below(high) for reader in readers]))
    atomic.write_text(piece_marker(folder, number), json.dumps(writer.edges))


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
