"""Looks into token datasets: what they hold, whether they are whole, and their text."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from megalm.dataset.indexed import BLOCK, IndexedDataset, bin_path, idx_path
from megalm.errors import UserError
from megalm.tokenizer import Tokenizer


def info(prefix: str | Path) -> dict[str, Any]:
    """Return type, counts and sidecar (or None) of the dataset at `prefix`, in constant time."""
    dataset = IndexedDataset(prefix)
    return {
        "prefix": str(prefix),
        "dtype": dataset.dtype.name,
        "documents": dataset.num_documents,
        "sequences": dataset.num_sequences,
        "tokens": dataset.num_tokens,
        "bin_bytes": bin_path(prefix).stat().st_size,
        "idx_bytes": idx_path(prefix).stat().st_size,
        "sidecar": dataset.sidecar,
    }


def verify(prefix: str | Path) -> dict[str, Any]:
    """Read all of the dataset at `prefix` and return its `info` with "verified": true and what was compared.

    The index must be consistent, every id within the vocabulary, every document closed by the end token where
    the sidecar says so, and digest and counts those of the sidecar. Raises UserError for the first thing that
    is not.
    """
    dataset = IndexedDataset(prefix)
    sidecar = dataset.sidecar or {}
    _check_sequences(dataset)
    _check_borders(dataset)
    largest, digest = _check_tokens(dataset, sidecar.get("vocab_size"))
    found = {
        "documents": dataset.num_documents,
        "sequences": dataset.num_sequences,
        "tokens": dataset.num_tokens,
        "dtype": dataset.dtype.name,
        "bin_sha256": digest,
    }
    for name, value in found.items():
        if name in sidecar and sidecar[name] != value:
            raise UserError(
                f"{prefix} has {name} {value}, its sidecar says {sidecar[name]}; copy or build it again"
            )
    if sidecar.get("append_eod"):
        _check_ends(dataset, sidecar["eod_id"])
    return {
        **info(prefix),
        "largest_id": largest,
        "bin_sha256": digest,
        "compared": sorted(sidecar.keys() & found.keys()),
        "verified": True,
    }


def show(prefix: str | Path, tokenizer: Tokenizer, first: int = 0, count: int = 1) -> list[dict[str, Any]]:
    """Return `count` documents of `prefix` from number `first` on, as text, with their origins where they are recorded.

    Raises UserError for a document that is not there or another tokenizer than the dataset's.
    """
    dataset = IndexedDataset(prefix)
    if not 0 <= first < dataset.num_documents:
        raise UserError(
            f"document {first} of {prefix} is not there; it has {dataset.num_documents}, numbered from 0"
        )
    check_tokenizer(dataset, tokenizer)
    documents = []
    for number in range(first, min(first + count, dataset.num_documents)):
        start, end = dataset.document_starts(np.array([number, number + 1])).tolist()
        text = tokenizer.decode(dataset.tokens(start, end - start).tolist())
        entry = {"document": number, "tokens": end - start, "text": text}
        if dataset.loss_mask is not None:
            entry["counted"] = int(dataset.loss_mask.read(start, end - start).sum())
        if dataset.origins is not None:
            entry["origin"] = dataset.origins.origin(number)._asdict()
        documents.append(entry)
    return documents


def check_tokenizer(dataset: IndexedDataset, tokenizer: Tokenizer) -> None:
    """Raise UserError if the dataset is known to be made with another tokenizer."""
    if dataset.sidecar and dataset.sidecar["tokenizer_hash"] != tokenizer.hash:
        raise UserError(
            f"{dataset.prefix} was made with another tokenizer ({dataset.sidecar['tokenizer']}); give that one"
        )


def _ranges(size: int) -> Iterator[slice]:
    for start in range(0, size, BLOCK):
        yield slice(start, min(start + BLOCK, size))


def _check_sequences(dataset: IndexedDataset) -> None:
    """Lengths must not be negative, and each pointer be the sum of the lengths before."""
    expected = 0
    for part in _ranges(dataset.num_sequences):
        lengths = dataset.sequence_lengths[part].astype(np.int64)
        if (lengths < 0).any():
            bad = part.start + int(np.argmax(lengths < 0))
            raise UserError(
                f"sequence {bad} of {dataset.prefix} has length {lengths.min()}; build the dataset again"
            )
        ends = expected + np.cumsum(lengths * dataset.dtype.itemsize)
        wrong = dataset.sequence_pointers[part] != np.concatenate([[expected], ends[:-1]])
        if wrong.any():
            bad = part.start + int(np.argmax(wrong))
            raise UserError(
                f"sequence {bad} of {dataset.prefix} begins at byte {dataset.sequence_pointers[bad]}, not where "
                "the one before ends; build the dataset again"
            )
        expected = int(ends[-1])


def _check_borders(dataset: IndexedDataset) -> None:
    """Document borders must rise from 0 to the number of sequences."""
    before = 0
    for part in _ranges(dataset.num_documents + 1):
        borders = dataset.document_indices[part]
        if (np.diff(borders, prepend=before) < 0).any():
            raise UserError(f"document borders of {dataset.prefix} go back; build the dataset again")
        before = int(borders[-1])
    if dataset.document_indices[0] != 0 or before != dataset.num_sequences:
        raise UserError(
            f"document borders of {dataset.prefix} run from {dataset.document_indices[0]} to {before}, not over "
            f"its {dataset.num_sequences} sequences; build the dataset again"
        )


def _check_tokens(dataset: IndexedDataset, vocab_size: int | None) -> tuple[int, str]:
    """Return the largest id and the sha256 of the .bin."""
    digest = hashlib.sha256()
    largest = -1
    for part in _ranges(dataset.num_tokens):
        tokens = dataset.tokens(part.start, part.stop - part.start)
        digest.update(tokens.data.cast("B"))
        wrong = tokens < 0 if vocab_size is None else (tokens < 0) | (tokens >= vocab_size)
        if wrong.any():
            bad = int(np.argmax(wrong))
            raise UserError(
                f"token {part.start + bad} of {dataset.prefix} is {tokens[bad]}, outside the vocabulary of "
                f"{vocab_size or 'any tokenizer'}; build the dataset again"
            )
        largest = max(largest, int(tokens.max()))
    return largest, digest.hexdigest()


def _check_ends(dataset: IndexedDataset, eod_id: int) -> None:
    for part in _ranges(dataset.num_documents):
        ends = dataset.document_starts(np.arange(part.start + 1, part.stop + 1))
        for number, end in enumerate(ends.tolist(), start=part.start):
            if dataset.tokens(end - 1, 1)[0] != eod_id:
                raise UserError(
                    f"document {number} of {dataset.prefix} does not end with token {eod_id}; build it again"
                )
