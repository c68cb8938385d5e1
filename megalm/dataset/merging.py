"""Joins token datasets into one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megalm.dataset.copying import Copier, counts_of, shared_record
from megalm.dataset.indexed import IndexedDataset, idx_path
from megalm.dataset.publishing import check_targets, publish, staged
from megalm.dataset.sidecar import KIND, write_sidecar
from megalm.errors import UserError


def merge(prefixes: Sequence[str | Path], output: str | Path, overwrite: bool = False) -> dict[str, Any]:
    """Write the documents of `prefixes`, one dataset after the other, to `output`; returns its counts.

    A sidecar is written where all parts have one, a loss mask and origins where some have them. All files appear at the
    end or none. Raises UserError for parts of unlike type or tokenizer, or an `output` that exists unless `overwrite`.
    """
    if not prefixes:
        raise UserError("nothing to merge; name at least one dataset prefix")
    check_targets([output])
    parts = [IndexedDataset(prefix) for prefix in prefixes]
    if any(Path(output).resolve() == part.prefix.resolve() for part in parts):
        raise UserError(f"output {output} is one of the inputs; choose another prefix")
    if idx_path(output).exists() and not overwrite:
        raise UserError(f"{idx_path(output)} exists; choose another prefix or overwrite it with --overwrite")
    _check_alike(parts)
    copier = Copier(parts)
    with staged(output) as folder:
        prefix = folder / "merged"
        with copier.writer_for(prefix) as writer:
            for number, part in enumerate(parts):
                copier.copy(writer, number, 0, part.num_documents)
        record: dict[str, Any] = counts_of(writer)
        sidecars = [part.sidecar for part in parts if part.sidecar]
        if len(sidecars) == len(parts):
            record = {
                "kind": KIND,
                **shared_record(sidecars),
                **record,
                "merged": [
                    {"prefix": str(part.prefix), "bin_sha256": sidecar["bin_sha256"]}
                    for part, sidecar in zip(parts, sidecars, strict=True)
                ],
            }
            write_sidecar(prefix, record)
        publish({output: prefix})
    return record


def _check_templates(parts: Sequence[IndexedDataset]) -> None:
    """Refuse to mix conversations that were written in different ways."""
    found = {
        part.sidecar["chat"]["template_hash"]: part
        for part in parts
        if part.sidecar and "chat" in part.sidecar
    }
    if len(found) > 1:
        names = " and ".join(str(part.prefix) for part in found.values())
        raise UserError(f"{names} were made with different chat templates; build them with one")


def _check_alike(parts: Sequence[IndexedDataset]) -> None:
    first = parts[0]
    _check_templates(parts)
    for part in parts[1:]:
        if part.dtype != first.dtype:
            raise UserError(
                f"{part.prefix} holds {part.dtype}, {first.prefix} {first.dtype}; build them alike"
            )
        for name in ("tokenizer_hash", "eod_id", "append_eod"):
            if part.sidecar and first.sidecar and part.sidecar[name] != first.sidecar[name]:
                raise UserError(
                    f"{part.prefix} has {name} {part.sidecar[name]}, {first.prefix} has {first.sidecar[name]}; build "
                    "them alike"
                )
