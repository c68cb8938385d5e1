"""Checks of token files against their index; each names the file, the place in it, what is there and what should be."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from megalm.errors import UserError

PIECE = 1 << 20  # entries looked at together
AGAIN = "copy or build the dataset again"


class Index(Protocol):
    """What an .idx holds; see `IndexedDataset`."""

    prefix: Path
    dtype: np.dtype[Any]
    num_sequences: int
    num_documents: int
    sequence_lengths: NDArray[Any]
    sequence_pointers: NDArray[Any]
    document_indices: NDArray[Any]


def check_ends_of_index(dataset: Index) -> None:
    """Check in constant time where the index begins and ends."""
    idx, borders = f"{dataset.prefix}.idx", dataset.document_indices
    if dataset.num_sequences and dataset.sequence_pointers[0] != 0:
        raise UserError(
            f"{idx}: sequence 0 begins at byte {dataset.sequence_pointers[0]} of the .bin, expected 0; {AGAIN}"
        )
    first, last = int(borders[0]), int(borders[-1])
    if first != 0 or last > dataset.num_sequences:
        raise UserError(
            f"{idx}: document borders run from {first} to {last}, expected 0 to {dataset.num_sequences}, its number of "
            f"sequences; {AGAIN}"
        )


def check_index(dataset: Index) -> None:
    """Check every entry of the index: lengths, where sequences begin, and document borders."""
    check_ends_of_index(dataset)
    _check_borders(dataset)
    _check_sequences(dataset)


def pieces(size: int) -> Iterator[slice]:
    """Cut [0, size) into slices of at most PIECE."""
    for start in range(0, size, PIECE):
        yield slice(start, min(start + PIECE, size))


def _check_borders(dataset: Index) -> None:
    """Document borders must not fall, and end at the number of sequences."""
    before = 0
    for part in pieces(dataset.num_documents + 1):
        borders = dataset.document_indices[part]
        falls = np.diff(borders, prepend=before) < 0
        if falls.any():
            bad = int(np.argmax(falls))
            last = int(borders[bad - 1]) if bad else before
            raise UserError(
                f"{dataset.prefix}.idx: document {part.start + bad} begins at sequence {borders[bad]}, expected at least "
                f"{last}, where the one before begins; {AGAIN}"
            )
        before = int(borders[-1])
    if before != dataset.num_sequences:
        raise UserError(
            f"{dataset.prefix}.idx: document borders end at {before}, expected {dataset.num_sequences}, its number of "
            f"sequences; {AGAIN}"
        )


def _check_sequences(dataset: Index) -> None:
    """Lengths must not be negative, and each pointer be the sum of the lengths before."""
    expected = 0
    for part in pieces(dataset.num_sequences):
        lengths = dataset.sequence_lengths[part].astype(np.int64)
        ends = expected + np.cumsum(lengths * dataset.dtype.itemsize)
        begins = np.concatenate([[expected], ends[:-1]])
        found = dataset.sequence_pointers[part]
        wrong = (found != begins) | (lengths < 0)
        if wrong.any():
            here = int(np.argmax(wrong))
            sequence = part.start + here
            document = int(np.searchsorted(dataset.document_indices, sequence, side="right")) - 1
            place = f"{dataset.prefix}.idx: sequence {sequence} (document {document})"
            if lengths[here] < 0:
                raise UserError(f"{place} has length {lengths[here]}, expected 0 or more; {AGAIN}")
            raise UserError(
                f"{place} begins at byte {found[here]} of the .bin, expected {begins[here]}, where the one before ends; "
                f"{AGAIN}"
            )
        expected = int(ends[-1])
