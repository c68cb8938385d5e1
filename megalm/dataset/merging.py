"""Joins token datasets into one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megalm.dataset.indexed import BLOCK, IndexedDataset, idx_path
from megalm.dataset.sidecar import sidecar_path, write_sidecar
from megalm.dataset.writer import IndexedDatasetWriter
from megalm.errors import UserError

SHARED = ("tokenizer", "tokenizer_hash", "vocab_size", "eod_id", "append_eod")


def merge(prefixes: Sequence[str | Path], output: str | Path, overwrite: bool = False) -> dict[str, Any]:
    """Write the documents of `prefixes`, one dataset after the other, to `output`; returns its counts.

    A sidecar is written where all parts have one. Raises UserError for parts of unlike type or tokenizer, or
    an `output` that exists unless `overwrite`.
    """
    if not prefixes:
        raise UserError("nothing to merge; name at least one dataset prefix")
    parts = [IndexedDataset(prefix) for prefix in prefixes]
    if any(Path(output).resolve() == part.prefix.resolve() for part in parts):
        raise UserError(f"output {output} is one of the inputs; choose another prefix")
    if idx_path(output).exists() and not overwrite:
        raise UserError(f"{idx_path(output)} exists; choose another prefix or overwrite it with --overwrite")
    _check_alike(parts)
    sidecar_path(output).unlink(missing_ok=True)
    with IndexedDatasetWriter(output, parts[0].dtype) as writer:
        for part in parts:
            _append(writer, part)
    counts = {
        "documents": writer.num_documents,
        "sequences": writer.num_sequences,
        "tokens": writer.num_tokens,
    }
    record: dict[str, Any] = {"dtype": writer.dtype.name, **counts, "bin_sha256": writer.sha256}
    sidecars = [part.sidecar for part in parts if part.sidecar]
    if len(sidecars) == len(parts):
        record = {
            "kind": "megalm dataset",
            **{name: sidecars[0].get(name) for name in SHARED},
            **record,
            "merged": [
                {"prefix": str(part.prefix), "bin_sha256": sidecar["bin_sha256"]}
                for part, sidecar in zip(parts, sidecars, strict=True)
            ],
        }
        write_sidecar(output, record)
    return record


def _append(writer: IndexedDatasetWriter, part: IndexedDataset) -> None:
    """Copy `part` in pieces of bounded size that end with a document."""
    document = 0
    while document < part.num_documents:
        stop = _documents_within(part, document)
        borders = part.document_indices[document : stop + 1]
        first, last = int(borders[0]), int(borders[-1])
        start, end = part.document_starts(np.array([document, stop])).tolist()
        writer.add_documents(
            part.tokens(start, end - start), part.sequence_lengths[first:last], borders[1:] - first
        )
        document = stop


def _documents_within(part: IndexedDataset, document: int) -> int:
    """Return where to stop a piece that begins with `document`: about BLOCK tokens, at most BLOCK documents."""
    reach = int(part.document_starts(np.array([document]))[0]) + BLOCK
    stop = int(part.document_at(np.array([reach]))[0]) if reach < part.num_tokens else part.num_documents
    return min(max(stop, document + 1), document + BLOCK)


def _check_alike(parts: Sequence[IndexedDataset]) -> None:
    first = parts[0]
    for part in parts[1:]:
        if part.dtype != first.dtype:
            raise UserError(
                f"{part.prefix} holds {part.dtype}, {first.prefix} {first.dtype}; build them alike"
            )
        for name in ("tokenizer_hash", "eod_id"):
            if part.sidecar and first.sidecar and part.sidecar[name] != first.sidecar[name]:
                raise UserError(
                    f"{part.prefix} has {name} {part.sidecar[name]}, {first.prefix} has "
                    f"{first.sidecar[name]}; build them with one tokenizer"
                )
