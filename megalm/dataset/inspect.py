"""Looks into token datasets: what they hold, whether they are whole, and their text."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megalm.dataset.checksums import checksums, read_checksums
from megalm.dataset.index_checks import AGAIN, check_index, pieces
from megalm.dataset.indexed import IndexedDataset, bin_path, idx_path
from megalm.dataset.labels import label_counts, labels_path, read_labels
from megalm.dataset.loss_mask import mask_path
from megalm.dataset.origins import origins_path
from megalm.dataset.pack_stream import packs_of
from megalm.dataset.packing import LongDocuments
from megalm.dataset.values import read_values, values_path
from megalm.errors import UserError
from megalm.hashes import sha256_of
from megalm.tokenizer import Tokenizer


def info(
    prefix: str | Path, packed: int | None = None, long_documents: LongDocuments = "cut"
) -> dict[str, Any]:
    """Return type, counts and sidecar (or None) of the dataset at `prefix`, in constant time.

    packed: also how its documents fill packs of so many tokens (see `packing`), in time by the number of documents.
    """
    dataset = IndexedDataset(prefix)
    packs = packs_of(dataset, packed, long_documents) if packed else None
    return {
        "prefix": str(prefix),
        "dtype": dataset.dtype.name,
        "documents": dataset.num_documents,
        "sequences": dataset.num_sequences,
        "tokens": dataset.num_tokens,
        "bin_bytes": bin_path(prefix).stat().st_size,
        "idx_bytes": idx_path(prefix).stat().st_size,
        "sidecar": dataset.sidecar,
        **({} if packs is None else {"packs": {"seq_length": packed, **packs.summary()}}),
    }


def verify(prefix: str | Path) -> dict[str, Any]:
    """Read all of the dataset at `prefix` and return its `info` with "verified": true and what was compared.

    The index must be consistent, every id within the vocabulary, every document closed by the end token where
    the sidecar says so, and digests and counts those of the sidecar. Raises UserError for the first thing that
    is not, with the file, the place, what is there and what was expected.
    """
    dataset = IndexedDataset(prefix)
    sidecar = dataset.sidecar or {}
    check_index(dataset)
    largest, digest = _check_tokens(dataset, sidecar.get("vocab_size"))
    if sidecar.get("append_eod"):
        _check_ends(dataset, sidecar["eod_id"])
    crcs = read_checksums(prefix, dataset.num_documents)
    if crcs is not None:
        _check_checksums(dataset, crcs)
    digests = {"bin_sha256": digest, "idx_sha256": sha256_of(idx_path(prefix))}
    beside = {
        "mask_sha256": mask_path(prefix),
        "origins_sha256": origins_path(prefix),
        "labels_sha256": labels_path(prefix),
        "values_sha256": values_path(prefix),
    }
    for name, path in beside.items():
        if name in sidecar:
            if not path.is_file():
                raise UserError(f"{path} is missing, which the sidecar names; {AGAIN}")
            digests[name] = sha256_of(path)
    for name, value in digests.items():
        if sidecar.get(name, value) != value:
            file = f"{prefix}.{name.partition('_')[0]}"
            raise UserError(f"{file} has SHA-256 {value}, expected {sidecar[name]} by its sidecar; {AGAIN}")
    compared = sidecar.keys() & (digests.keys() | {"documents", "sequences", "tokens", "dtype"})
    return {
        **info(prefix),
        "largest_id": largest,
        **digests,
        "compared": sorted(compared | ({"crc"} if crcs is not None else set())),
        "verified": True,
    }


def verify_all(prefixes: Sequence[str | Path], rank: int = 0, world_size: int = 1) -> None:
    """Verify this rank's share of `prefixes`, for all ranks of a world together to verify each once; UserError as `verify`."""
    for prefix in sorted(set(map(str, prefixes)))[rank::world_size]:
        verify(prefix)


def show(prefix: str | Path, tokenizer: Tokenizer, first: int = 0, count: int = 1) -> list[dict[str, Any]]:
    """Return `count` documents of `prefix` from number `first` on, as text, with their origins, labels and values where they are recorded.

    Raises UserError for a document that is not there or another tokenizer than the dataset's.
    """
    dataset = IndexedDataset(prefix)
    if not 0 <= first < dataset.num_documents:
        raise UserError(
            f"document {first} of {prefix} is not there; it has {dataset.num_documents}, numbered from 0"
        )
    check_tokenizer(dataset, tokenizer)
    names = label_counts(prefix)[0] if labels_path(prefix).exists() else []
    labels = read_labels(dataset, names) if names else None
    values = read_values(dataset) if values_path(prefix).exists() else None
    documents: list[dict[str, Any]] = []
    for number in range(first, min(first + count, dataset.num_documents)):
        start, end = dataset.document_starts(np.array([number, number + 1])).tolist()
        text = tokenizer.decode(dataset.tokens(start, end - start).tolist())
        entry: dict[str, Any] = {"document": number, "tokens": end - start, "text": text}
        if labels is not None:
            entry["label"] = names[labels[number]]
        if values is not None:
            entry["value"] = float(values[number])
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


def _check_tokens(dataset: IndexedDataset, vocab_size: int | None) -> tuple[int, str]:
    """Return the largest id and the sha256 of the .bin."""
    digest = hashlib.sha256()
    largest = -1
    for part in pieces(dataset.num_tokens):
        tokens = dataset.tokens(part.start, part.stop - part.start)
        digest.update(tokens.data.cast("B"))
        if tokens.min() < 0 or (vocab_size is not None and tokens.max() >= vocab_size):
            bad = part.start + int(np.argmax((tokens < 0) | (tokens >= (vocab_size or 2**31))))
            raise UserError(
                f"{_place(dataset, bad)} is {dataset.tokens(bad, 1)[0]}, expected an id below {vocab_size or 2**31}; {AGAIN}"
            )
        largest = max(largest, int(tokens.max()))
    return largest, digest.hexdigest()


def _place(dataset: IndexedDataset, token: int) -> str:
    document = int(dataset.document_at(np.array([token]))[0])
    byte = token * dataset.dtype.itemsize
    return f"{bin_path(dataset.prefix)}: token {token} (byte {byte}, document {document})"


def _check_ends(dataset: IndexedDataset, eod_id: int) -> None:
    """Every document must end with the token that ends documents."""
    for part in pieces(dataset.num_documents):
        borders = dataset.document_starts(np.arange(part.start, part.stop + 1))
        last = np.maximum(borders[1:] - 1, 0)
        ends = dataset.pick(last) if dataset.num_tokens else np.zeros(0)
        wrong = (np.diff(borders) == 0) | (ends != eod_id)
        if wrong.any():
            bad = int(np.argmax(wrong))
            found = "is empty" if borders[bad] == borders[bad + 1] else f"ends with {ends[bad]}"
            raise UserError(
                f"{bin_path(dataset.prefix)}: document {part.start + bad} (bytes {borders[bad] * dataset.dtype.itemsize} to "
                f"{borders[bad + 1] * dataset.dtype.itemsize}) {found}, expected the end token {eod_id}; {AGAIN}"
            )


def _check_checksums(dataset: IndexedDataset, crcs: NDArray[np.uint32]) -> None:
    """Every document must be the one that was written."""
    document = 0
    while document < dataset.num_documents:
        stop = dataset.documents_within(document)
        starts = dataset.document_starts(np.arange(document, stop + 1))
        tokens = dataset.tokens(int(starts[0]), int(starts[-1] - starts[0]))
        found = checksums(tokens, starts - starts[0])
        wrong = found != crcs[document:stop]
        if wrong.any():
            bad = int(np.argmax(wrong))
            first, last = (starts[bad : bad + 2] * dataset.dtype.itemsize).tolist()
            raise UserError(
                f"{bin_path(dataset.prefix)}: document {document + bad} (bytes {first} to {last}) has CRC-32 {found[bad]:08x}, "
                f"expected {crcs[document + bad]:08x} by the .crc; {AGAIN}"
            )
        document = stop
