"""Sorted runs on disk: rows of 64-bit integers, sorted by the first, written by many tasks, read by ranges of it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megalm import atomic

Rows = NDArray[np.uint64]
"""Shape (columns, rows), so that each column lies in one piece."""

RUN_BYTES = 16 << 20
"""How much a writer holds before it writes a run, and about how much `ranges` yields at a time."""
TOP = 1 << 64


class Run(NamedTuple):
    """A file of sorted rows; `mark` is set in its second column when it is read among others."""

    path: Path
    mark: int = 0


class RunWriter:
    """Collects rows and writes them as sorted files `folder`/RANK-NUMBER.npy."""

    def __init__(self, folder: Path, rank: int, columns: int, unique: bool = False):
        self._folder, self._rank, self._columns, self._unique = folder, rank, columns, unique
        self._held: list[Rows] = []
        self._bytes = 0
        self._written = 0

    def add(self, *columns: NDArray[np.uint64]) -> None:
        """Add rows given by their columns."""
        rows = np.stack(columns)
        self._held.append(rows)
        self._bytes += rows.nbytes
        if self._bytes >= RUN_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is left; a writer that was given nothing writes an empty run."""
        if self._held or not self._written:
            self._flush()

    def _flush(self) -> None:
        rows = np.concatenate([np.empty((self._columns, 0), np.uint64), *self._held], axis=1)
        self._held, self._bytes = [], 0
        rows = sort_rows(rows)
        save_rows(
            run_path(self._folder, self._rank, self._written), unique_rows(rows) if self._unique else rows
        )
        self._written += 1


def run_path(folder: Path, rank: int, number: int) -> Path:
    """Where the runs of a task lie."""
    return folder / f"{rank:05d}-{number:05d}.npy"


def run_paths(folder: Path, rank: int | None = None) -> list[Path]:
    """The runs in `folder`: of all tasks, or of one."""
    return sorted(folder.glob("*.npy" if rank is None else f"{rank:05d}-*.npy"))


def save_rows(path: Path, rows: Rows) -> None:
    """Write rows as a file that is whole or absent."""
    rows = np.ascontiguousarray(rows)
    with atomic.open_atomic(path) as file:
        # numpy writes an array to a file itself, and on a full disk its error does not say what it was.
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(rows))
        file.write(rows.data)


def load_rows(path: Path) -> Rows:
    """The rows of a file, mapped into memory and read when touched."""
    return np.load(path, mmap_mode="r")


def sort_rows(rows: Rows) -> Rows:
    """Rows in ascending order of their columns, the first above the second and so on."""
    return rows[:, np.lexsort(rows[::-1])]


def unique_rows(rows: Rows) -> Rows:
    """Sorted rows without repetitions."""
    if not rows.shape[1]:
        return rows
    fresh = np.ones(rows.shape[1], bool)
    fresh[1:] = (rows[:, 1:] != rows[:, :-1]).any(axis=0)
    return rows[:, fresh]


def slice_rows(rows: Rows, low: int, high: int) -> Rows:
    """The rows whose first column lies in [low, high), of rows sorted by it."""
    first = int(np.searchsorted(rows[0], np.uint64(low)))
    last = rows.shape[1] if high >= TOP else int(np.searchsorted(rows[0], np.uint64(high)))
    return rows[:, first:last]


def key_range(rank: int, world_size: int) -> tuple[int, int]:
    """The part of the hashes [0, 2^64) that is task `rank`'s."""
    return TOP * rank // world_size, TOP * (rank + 1) // world_size


def ranges(runs: Sequence[Run], low: int, high: int, columns: int) -> Iterator[Rows]:
    """Yield the rows of all runs whose first column lies in [low, high), sorted, about `RUN_BYTES` at a time.

    Rows of equal first column come together, however many they are.
    """
    size = sum(slice_rows(load_rows(run.path), low, high).nbytes for run in runs)
    pieces = max(1, -(-size // RUN_BYTES))
    for i in range(pieces):
        begin, end = low + (high - low) * i // pieces, low + (high - low) * (i + 1) // pieces
        parts = [np.empty((columns, 0), np.uint64)]
        for run in runs:
            # Mapped anew for each piece, so that what was read does not stay in memory.
            part = np.array(slice_rows(load_rows(run.path), begin, end))
            part[1:2] |= np.uint64(run.mark)
            parts.append(part)
        yield sort_rows(np.concatenate(parts, axis=1))


def groups(rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where runs of two or more equal first columns begin and end, in sorted rows."""
    keys = rows[0]
    borders = np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1, [len(keys)]]).astype(np.int64)
    starts, ends = borders[:-1], borders[1:]
    many = ends - starts > 1
    return starts[many], ends[many]


def members(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """All numbers in the ranges [start, end), one range after the other."""
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)
