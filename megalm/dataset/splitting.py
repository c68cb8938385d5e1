"""Cuts a token dataset into several: by shares or numbers of documents, or by their texts as a build does."""

import contextlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from megalm.dataset.copying import Copier, counts_of, shared_record
from megalm.dataset.fim import FimTokens, undo
from megalm.dataset.indexed import IndexedDataset, idx_path
from megalm.dataset.inspect import check_tokenizer
from megalm.dataset.publishing import check_targets, publish, remove_dataset, staged
from megalm.dataset.sidecar import KIND, write_sidecar
from megalm.errors import UserError
from megalm.splits import SPLITS, split_limits, split_of
from megalm.tokenizer import Tokenizer

Range = tuple[int, int, int]
"""Part, first document, and the one after the last."""


def split(
    prefix: str | Path,
    output: str | Path,
    shares: str | None = None,
    documents: Sequence[int] | None = None,
    tokenizer: Tokenizer | None = None,
    overwrite: bool = False,
) -> dict[str, dict[str, Any]]:
    """Write the documents of `prefix` to OUTPUT_train, OUTPUT_valid and OUTPUT_test; returns the counts of each.

    Either the first so many `documents` are the first part, the next so many the second, and what is left the last; or
    `shares` such as "98,1,1" are consecutive shares of the documents; or, with `shares` and `tokenizer`, the part of a
    document is by a hash of its text, the same as `build_dataset` finds. The order stays. Ids, loss masks and origins are
    copied, sidecars name the source; a part without documents is not written. All parts appear at the end.

    Raises UserError for settings that do not fit, another tokenizer, or files in the way unless `overwrite`.
    """
    if (shares is None) == (documents is None):
        raise UserError("give either shares, such as 98,1,1, or numbers of documents")
    dataset = IndexedDataset(prefix)
    targets = [f"{output}_{name}" for name in SPLITS] if Path(output).name else [str(output)]
    check_targets(targets)
    _check_targets(dataset, targets, overwrite)
    if documents is not None:
        ranges = _ranges(dataset, _borders_by_number(dataset, documents))
    elif tokenizer is None:
        ranges = _ranges(dataset, _borders_by_share(dataset, str(shares)))
    else:
        check_tokenizer(dataset, tokenizer)
        ranges = _ranges_by_text(dataset, split_limits(str(shares)), tokenizer)
    way = {"shares": shares, "documents": documents, "by_text": tokenizer is not None}
    copier = Copier([dataset])
    records: dict[str, dict[str, Any]] = {}
    with staged(output) as folder:
        with contextlib.ExitStack() as stack:
            writers = [stack.enter_context(copier.writer_for(folder / name)) for name in SPLITS]
            for part, first, stop in ranges:
                copier.copy(writers[part], 0, first, stop)
        for name, writer in zip(SPLITS, writers, strict=True):
            if writer.num_documents:
                records[name] = counts_of(writer)
                if dataset.sidecar:
                    records[name] = _record(dataset, name, way, records[name])
                    write_sidecar(folder / name, records[name])
        for name, target in zip(SPLITS, targets, strict=True):
            if name not in records:
                remove_dataset(target)
        publish({f"{output}_{name}": folder / name for name in records})
    return records


def _check_targets(dataset: IndexedDataset, targets: list[str], overwrite: bool) -> None:
    for target in targets:
        if Path(target).resolve() == dataset.prefix.resolve():
            raise UserError(f"{target} is the dataset that is split; choose another output")
        if idx_path(target).exists() and not overwrite:
            raise UserError(
                f"{idx_path(target)} exists; choose another prefix or overwrite it with --overwrite"
            )


def _borders_by_number(dataset: IndexedDataset, documents: Sequence[int]) -> list[int]:
    if not 1 <= len(documents) < len(SPLITS) or min(documents) < 0 or sum(documents) > dataset.num_documents:
        raise UserError(
            f"documents is {','.join(map(str, documents))}; give one or two numbers that come to at most the "
            f"{dataset.num_documents} documents of {dataset.prefix}"
        )
    return [0, *np.cumsum(documents).tolist(), dataset.num_documents]


def _borders_by_share(dataset: IndexedDataset, shares: str) -> list[int]:
    return [0, *(int(Fraction(limit, 2**64) * dataset.num_documents) for limit in split_limits(shares))]


def _ranges(dataset: IndexedDataset, borders: list[int]) -> Iterator[Range]:
    for part, (first, stop) in enumerate(pairwise(borders)):
        yield part, first, stop


def _ranges_by_text(dataset: IndexedDataset, limits: list[int], tokenizer: Tokenizer) -> Iterator[Range]:
    """Neighbours of one part together, for they are copied at once."""
    begin, last = 0, -1
    for document in range(dataset.num_documents):
        part = split_of(_text_of(dataset, document, tokenizer), limits)
        if part != last and document:
            yield last, begin, document
            begin = document
        last = part
    if dataset.num_documents:
        yield last, begin, dataset.num_documents


def _text_of(dataset: IndexedDataset, document: int, tokenizer: Tokenizer) -> bytes:
    """The text that decides on the document's part: its prompt, if it has one, else all."""
    start, stop = dataset.document_starts(np.array([document, document + 1])).tolist()
    if dataset.sidecar and dataset.sidecar.get("append_eod"):
        stop -= 1
    if dataset.loss_mask is not None:
        counted = dataset.loss_mask.read(start, stop - start)
        prompt = int(counted.argmax()) if counted.any() else 0
        stop = start + prompt if prompt else stop
    ids = dataset.tokens(start, stop - start).tolist()
    if dataset.sidecar and "fim_tokens" in dataset.sidecar:
        ids = undo(ids, FimTokens(**dataset.sidecar["fim_tokens"]))
    return tokenizer.decode_bytes(ids)


def _record(
    dataset: IndexedDataset, name: str, way: dict[str, Any], counts: dict[str, Any]
) -> dict[str, Any]:
    sidecar = dataset.sidecar or {}
    return {
        "kind": KIND,
        **shared_record([sidecar]),
        **counts,
        "split": name,
        "split_from": {"prefix": str(dataset.prefix), "bin_sha256": sidecar["bin_sha256"], **way},
    }
