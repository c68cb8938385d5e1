"""Token files in Megatron's .bin/.idx format, mapped into memory.

`PREFIX.bin` holds all token ids one after another. `PREFIX.idx` holds, little-endian: the magic bytes,
version (uint64), code of the ids' type (uint8), number of sequences (uint64), number of document borders
(uint64), then the length of each sequence (int32), where each begins in the .bin in bytes (int64), and the
document borders as sequence numbers (int64, from 0 to the number of sequences). Format:
megatron/core/datasets/indexed_dataset.py.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megalm.dataset.index_checks import AGAIN, check_ends_of_index, check_index
from megalm.dataset.loss_mask import LossMask, mask_path
from megalm.dataset.origins import Origins
from megalm.dataset.sidecar import read_sidecar
from megalm.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPE_OF_CODE: dict[int, np.dtype[Any]] = {
    code: np.dtype(name)
    for code, name in enumerate(["u1", "i1", "<i2", "<i4", "<i8", "<f8", "<f4", "<u2"], start=1)
}
CODE_OF_DTYPE = {dtype: code for code, dtype in DTYPE_OF_CODE.items()}
UINT16_VOCAB_LIMIT = 65500  # Megatron's own limit (DType.optimal_dtype), for files equal byte for byte
CHECKED_AT_ONCE = 1 << 20  # entries of an index up to which all are looked at when it is opened: milliseconds
BLOCK = 1 << 20  # elements handled at a time where a whole file is walked through


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the type that holds ids below `vocab_size`: uint16 where it suffices, else int32."""
    return np.dtype("<u2") if vocab_size < UINT16_VOCAB_LIMIT else np.dtype("<i4")


def bin_path(prefix: str | Path) -> Path:
    """Return the file of the token ids of `prefix`."""
    return Path(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    """Return the file of the index of `prefix`."""
    return Path(f"{prefix}.idx")


class IndexedDataset:
    """Sequences of token ids at `prefix`, mapped into memory: opened in constant time and memory at any size.

    Sizes and the ends of the index are checked when it is opened, all of an index of up to 2^20 entries; `inspect.verify`
    checks everything.

    `sequence_lengths` int32, `sequence_pointers` int64 (bytes) and `document_indices` int64 are views of the
    .idx. They are not aligned in the file: read elements or slices of them, for whole-array functions of
    NumPy copy all.
    """

    def __init__(self, prefix: str | Path) -> None:
        """Open `prefix`.bin and .idx; raises UserError where they are missing, damaged or do not fit."""
        self.prefix = Path(prefix)
        self.sidecar = read_sidecar(prefix)
        self.dtype, self.num_sequences, borders = _read_header(prefix)
        self.num_documents = borders - 1
        lengths_at, pointers_at, documents_at, _ = _sections(self.num_sequences, borders)
        index = _map_bytes(idx_path(prefix))
        self.sequence_lengths = _view(index, "<i4", self.num_sequences, lengths_at)
        self.sequence_pointers = _view(index, "<i8", self.num_sequences, pointers_at)
        self.document_indices = _view(index, "<i8", borders, documents_at)
        self.num_tokens = self._count_tokens()
        check_ends_of_index(self)
        if max(self.num_sequences, self.num_documents) <= CHECKED_AT_ONCE:
            check_index(self)
        self._check_bin()
        self._check_sidecar()
        self._tokens = _map_bytes(bin_path(prefix)).view(self.dtype)
        self.loss_mask = LossMask.of(prefix, self.num_tokens)
        """Which tokens count in the loss; None where all do."""
        self.origins = Origins.of(prefix, self.num_documents)
        """Where the documents came from; None where that is not recorded."""

    def __len__(self) -> int:
        return self.num_sequences

    def __reduce__(self) -> tuple[type["IndexedDataset"], tuple[Path]]:
        """Another process maps the files itself instead of being sent their content."""
        return IndexedDataset, (self.prefix,)

    def __getitem__(self, sequence: int) -> NDArray[Any]:
        """Return the ids of one sequence, without copying."""
        sequence = range(self.num_sequences)[sequence]
        start = int(self.sequence_pointers[sequence]) // self.dtype.itemsize
        return self.tokens(start, int(self.sequence_lengths[sequence]))

    def tokens(self, start: int, count: int) -> NDArray[Any]:
        """Return `count` ids from token number `start` on, across sequences, without copying."""
        if start < 0 or count < 0 or start + count > self.num_tokens:
            raise IndexError(f"tokens [{start}, {start + count}) of {self.num_tokens}")
        return self._tokens[start : start + count]

    def pick(self, tokens: NDArray[np.int64]) -> NDArray[Any]:
        """Return the ids at these token numbers."""
        return self._tokens[tokens]

    def document_starts(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return at which tokens `documents` (in [0, num_documents]) begin; the last one is the end."""
        sequences = self.document_indices[documents]
        starts = np.full(sequences.shape, self.num_tokens, np.int64)
        inside = sequences < self.num_sequences
        starts[inside] = self.sequence_pointers[sequences[inside]] // self.dtype.itemsize
        return starts

    def document_at(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which documents hold `tokens` (numbers), by a binary search in the mapped index."""
        low = np.zeros(tokens.shape, np.int64)
        high = np.full(tokens.shape, self.num_documents, np.int64)
        # Invariant: document `low` begins at or before the token, document `high` after it.
        while (high - low > 1).any():
            middle = (low + high) // 2
            before = self.document_starts(middle) <= tokens
            low, high = np.where(before, middle, low), np.where(before, high, middle)
        return low

    def documents_within(self, document: int) -> int:
        """Return where to stop a piece that begins with `document`: about BLOCK tokens, at most BLOCK documents."""
        reach = int(self.document_starts(np.array([document]))[0]) + BLOCK
        stop = int(self.document_at(np.array([reach]))[0]) if reach < self.num_tokens else self.num_documents
        return min(max(stop, document + 1), document + BLOCK, self.num_documents)

    def _count_tokens(self) -> int:
        """Tokens by the index: where the last sequence ends."""
        if not self.num_sequences:
            return 0
        end = int(self.sequence_pointers[-1]) + int(self.sequence_lengths[-1]) * self.dtype.itemsize
        if end < 0 or end % self.dtype.itemsize:
            raise UserError(
                f"{idx_path(self.prefix)}: sequence {self.num_sequences - 1}, the last, ends at byte {end} of the .bin, "
                f"expected a multiple of {self.dtype.itemsize}; {AGAIN}"
            )
        return end // self.dtype.itemsize

    def _check_bin(self) -> None:
        """The .bin must have just the tokens of the index."""
        path, size = bin_path(self.prefix), self.num_tokens * self.dtype.itemsize
        if not path.is_file():
            raise UserError(f"{path} is missing; copy it beside the .idx or build the dataset again")
        found = path.stat().st_size
        if found < size:
            document = int(self.document_at(np.array([found // self.dtype.itemsize]))[0])
            raise UserError(
                f"{path} is cut short: it has {found} bytes where its .idx says {size}; document {document} of "
                f"{self.num_documents} is the first that is not whole; {AGAIN}"
            )
        if found > size:
            raise UserError(
                f"{path} has {found} bytes where its .idx says {size}: {found - size} too many; {AGAIN}"
            )

    def _check_sidecar(self) -> None:
        """What the sidecar says of the files must be so."""
        found = {
            "documents": self.num_documents,
            "sequences": self.num_sequences,
            "tokens": self.num_tokens,
            "dtype": self.dtype.name,
        }
        for name, value in found.items():
            expected = (self.sidecar or {}).get(name, value)
            if expected != value:
                raise UserError(f"{self.prefix} has {name} {value}, its sidecar says {expected}; {AGAIN}")
        if "mask_sha256" in (self.sidecar or {}) and not mask_path(self.prefix).exists():
            raise UserError(f"{mask_path(self.prefix)} is missing, which the sidecar names; {AGAIN}")


def check_exists(prefix: str | Path) -> None:
    """UserError where there is no dataset at `prefix`."""
    if not idx_path(prefix).is_file():
        raise UserError(
            f"no dataset at {idx_path(prefix)}; give the path without .bin/.idx, or build it with `megalm dataset build`"
        )


def _read_header(prefix: str | Path) -> tuple[np.dtype[Any], int, int]:
    """Return type of ids, number of sequences and number of document borders of the .idx of `prefix`."""
    check_exists(prefix)
    path = idx_path(prefix)
    with open(path, "rb") as file:
        data = file.read(HEADER.size)
    if len(data) < HEADER.size or not data.startswith(MAGIC):
        raise UserError(
            f"{path} is not a Megatron index (begins with {data[:9]!r}); give the prefix of a token dataset"
        )
    _, version, code, sequences, borders = HEADER.unpack(data)
    if version != VERSION or code not in DTYPE_OF_CODE:
        raise UserError(
            f"{path} has version {version} and type code {code}; megalm reads version 1, codes 1 to 8"
        )
    _check_size(path, sequences, borders)
    return DTYPE_OF_CODE[code], sequences, borders


def _check_size(path: Path, sequences: int, borders: int) -> None:
    """The .idx must have room for just what its header says, or a byte a sequence more (multimodal files)."""
    lengths, pointers, documents, end = _sections(sequences, borders)
    size = path.stat().st_size
    if borders >= 1 and size in (end, end + sequences):
        return
    said = f"{sequences} sequences and {borders - 1} documents"
    if borders < 1 or size > end:
        raise UserError(f"{path} has {size} bytes where its header says {end} ({said}); {AGAIN}")
    if size < pointers:
        cut = f"the length of sequence {(size - lengths) // 4}"
    elif size < documents:
        cut = f"the place of sequence {(size - pointers) // 8}"
    else:
        cut = f"the border of document {(size - documents) // 8}"
    raise UserError(
        f"{path} is cut short: it has {size} bytes where its header says {end} ({said}); {cut} is the first entry missing; "
        f"{AGAIN}"
    )


def _sections(sequences: int, borders: int) -> tuple[int, int, int, int]:
    """Offsets in the .idx of the lengths, pointers and borders, and its end."""
    lengths = HEADER.size
    pointers = lengths + 4 * sequences
    documents = pointers + 8 * sequences
    return lengths, pointers, documents, documents + 8 * borders


def _map_bytes(path: Path) -> NDArray[np.uint8]:
    # As a plain array: slicing a memmap costs several times as much.
    return np.asarray(np.memmap(path, np.uint8, "r")) if path.stat().st_size else np.zeros(0, np.uint8)


def _view(data: NDArray[np.uint8], dtype: str, count: int, offset: int) -> NDArray[Any]:
    return np.frombuffer(data, dtype, count, offset)
