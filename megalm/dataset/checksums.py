"""A checksum of each document in `PREFIX.crc`, so that `verify` can tell which one was damaged.

The file is eight magic bytes, the number of documents (uint64, little-endian) and CRC-32 of the bytes of each (uint32).
"""

import struct
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megalm.errors import UserError

MAGIC = b"MEGACRCS"
HEADER = struct.Struct("<8sQ")


def crc_path(prefix: str | Path) -> Path:
    """Return the file of the checksums of `prefix`."""
    return Path(f"{prefix}.crc")


def header(documents: int) -> bytes:
    """Return what the file begins with."""
    return HEADER.pack(MAGIC, documents)


def checksums(tokens: NDArray[Any], borders: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return the checksum of each of the documents that `borders` cut `tokens` into."""
    data = tokens.data.cast("B") if len(tokens) else memoryview(b"")
    pieces = pairwise((borders * tokens.itemsize).tolist())
    return np.fromiter((zlib.crc32(data[a:b]) for a, b in pieces), np.uint32, len(borders) - 1)


def read_checksums(prefix: str | Path, documents: int) -> NDArray[np.uint32] | None:
    """Return the checksums of the documents of `prefix`, mapped into memory; None where there are none.

    Raises UserError for a file that is not of so many documents.
    """
    path = crc_path(prefix)
    if not path.exists():
        return None
    with open(path, "rb") as file:
        start = file.read(HEADER.size)
    size, expected = path.stat().st_size, HEADER.size + 4 * documents
    if start != header(documents) or size != expected:
        raise UserError(
            f"{path} has {size} bytes and begins with {start!r}, expected {expected} bytes and {header(documents)!r} for "
            f"{documents} documents; copy it again or delete it"
        )
    return np.memmap(path, "<u4", "r", HEADER.size, (documents,)) if documents else np.zeros(0, np.uint32)
