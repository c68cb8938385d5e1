"""Which tokens count in the loss: one bit a token in `PREFIX.mask`, beside the .bin/.idx of fine-tuning data.

The file is eight magic bytes, the number of tokens (uint64, little-endian) and the bits, the first token's in the lowest bit
of the first byte. Data without such a file count wholly.
"""

import struct
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from megalm.errors import UserError

MAGIC = b"MEGAMASK"
HEADER = struct.Struct("<8sQ")


def mask_path(prefix: str | Path) -> Path:
    """Return the file of the bits of `prefix`."""
    return Path(f"{prefix}.mask")


class LossMask:
    """The bits of a dataset, mapped into memory."""

    def __init__(self, path: Path, num_tokens: int) -> None:
        """Open `path`; UserError where it is not the mask of so many tokens."""
        with open(path, "rb") as file:
            header = file.read(HEADER.size)
        if len(header) < HEADER.size or not header.startswith(MAGIC):
            raise UserError(f"{path} is not a loss mask (begins with {header[:8]!r}); copy or build it again")
        found = HEADER.unpack(header)[1]
        expected, size = HEADER.size + -(-num_tokens // 8), path.stat().st_size
        if found != num_tokens or size != expected:
            raise UserError(
                f"{path} has {size} bytes for {found} tokens where the dataset's {num_tokens} tokens want {expected}; "
                "copy or build the dataset again"
            )
        self._bits = (
            np.asarray(np.memmap(path, np.uint8, "r", HEADER.size)) if num_tokens else np.empty(0, "u1")
        )

    @classmethod
    def of(cls, prefix: str | Path, num_tokens: int) -> "LossMask | None":
        """Return the mask of `prefix`, None where it has none."""
        path = mask_path(prefix)
        return cls(path, num_tokens) if path.exists() else None

    def read(self, start: int, count: int) -> NDArray[np.uint8]:
        """Return 1 for each of `count` tokens from number `start` on that counts, 0 for the others."""
        first, skip = divmod(start, 8)
        bits = np.unpackbits(self._bits[first : -(-(start + count) // 8)], bitorder="little")
        return bits[skip : skip + count]


class LossMaskWriter:
    """Streams the marks of tokens into a file as bits."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._tokens = 0
        self._rest = np.empty(0, np.uint8)
        file.write(HEADER.pack(MAGIC, 0))

    def add(self, counts: NDArray[np.uint8]) -> None:
        """Append a 1 for each token that counts and a 0 for each other one."""
        waiting = np.concatenate([self._rest, counts])
        whole = len(waiting) // 8 * 8
        self._file.write(np.packbits(waiting[:whole], bitorder="little").data)
        self._rest = waiting[whole:]
        self._tokens += len(counts)

    def finish(self) -> None:
        """Write the last bits and the number of tokens."""
        self._file.write(np.packbits(self._rest, bitorder="little").data)
        self._file.seek(0)
        self._file.write(HEADER.pack(MAGIC, self._tokens))
