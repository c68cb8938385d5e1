"""Copies documents from datasets into another one: ids, sequences, loss masks and origins, nothing tokenized again."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megalm.dataset.indexed import IndexedDataset, bin_path
from megalm.dataset.labels import labels_path
from megalm.dataset.origins import OriginColumns
from megalm.dataset.values import values_path
from megalm.dataset.writer import IndexedDatasetWriter
from megalm.errors import UserError

SHARED = ("tokenizer", "tokenizer_hash", "vocab_size", "eod_id", "append_eod")


class Copier:
    """Appends documents of `parts` to writers that `writer_for` made."""

    def __init__(self, parts: Sequence[IndexedDataset]) -> None:
        self.parts = parts
        for part in parts:
            for what, path in (
                ("labels", labels_path(part.prefix)),
                ("preferences", values_path(part.prefix)),
            ):
                if path.exists():
                    raise UserError(
                        f"dataset {part.prefix} has {what}, which are not copied: build it again from its inputs"
                    )
        self._masked = any(part.loss_mask is not None for part in parts)
        self._traced = any(part.origins is not None for part in parts)
        self._inputs: list[str] = []
        self._first_input: list[int] = []
        for part in parts:
            self._first_input.append(len(self._inputs))
            # a document whose origin nobody recorded came from the part itself, so much is known
            self._inputs += part.origins.inputs if part.origins else [str(bin_path(part.prefix))]

    def writer_for(self, prefix: Any) -> IndexedDatasetWriter:
        """Return a writer that keeps all that the parts have."""
        inputs = self._inputs if self._traced else None
        return IndexedDatasetWriter(prefix, self.parts[0].dtype, self._masked, inputs)

    def copy(self, writer: IndexedDatasetWriter, part: int, first: int, stop: int) -> None:
        """Append documents [first, stop) of a part, in pieces of bounded size."""
        while first < stop:
            end = min(stop, self.parts[part].documents_within(first))
            self._copy_piece(writer, part, first, end)
            first = end

    def _copy_piece(self, writer: IndexedDatasetWriter, number: int, first: int, stop: int) -> None:
        part = self.parts[number]
        borders = part.document_indices[first : stop + 1]
        start, end = part.document_starts(np.array([first, stop])).tolist()
        writer.add_documents(
            part.tokens(start, end - start),
            part.sequence_lengths[borders[0] : borders[-1]],
            borders[1:] - borders[0],
            self._counts(part, start, end - start),
            self._origins(number, first, stop),
        )

    def _counts(self, part: IndexedDataset, start: int, count: int) -> NDArray[np.uint8] | None:
        if not self._masked:
            return None
        return part.loss_mask.read(start, count) if part.loss_mask else np.ones(count, np.uint8)

    def _origins(self, number: int, first: int, stop: int) -> OriginColumns | None:
        if not self._traced:
            return None
        part, count = self.parts[number], stop - first
        if part.origins is not None:
            columns = part.origins.columns(first, stop)
            return columns._replace(files=columns.files + np.int32(self._first_input[number]))
        offsets = part.document_starts(np.arange(first, stop)) * part.dtype.itemsize
        files = np.full(count, self._first_input[number], np.int32)
        return OriginColumns(offsets, files, np.zeros(count, np.int64), np.empty(0, np.uint8))


def shared_record(sidecars: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what a copy's sidecar says as those of its sources do, the first of them where only some have it."""
    found = {name: sidecars[0].get(name) for name in SHARED}
    for name in ("prompt_key", "fim_tokens", "chat"):
        values = [sidecar[name] for sidecar in sidecars if name in sidecar]
        found |= {name: values[0]} if values else {}
    return found


def counts_of(writer: IndexedDatasetWriter) -> dict[str, Any]:
    """What a sidecar says of the files that `writer` wrote."""
    digests = {"bin_sha256": writer.sha256, **writer.side_digests}
    return {
        "dtype": writer.dtype.name,
        "documents": writer.num_documents,
        "sequences": writer.num_sequences,
        "tokens": writer.num_tokens,
        **digests,
    }
