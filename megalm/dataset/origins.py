"""Where each document came from: `PREFIX.origins`, an optional file beside the .bin/.idx.

Little-endian: eight magic bytes, the numbers of documents, of bytes of names and of bytes of the list of inputs (uint64 each);
then of each document the byte in its (uncompressed) input at which its text began (int64), the number of the input (int32)
and where its name ends among the names (int64); the names (UTF-8), one after another; the inputs' paths as a JSON list.
"""

import contextlib
import json
import struct
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megalm.errors import UserError

MAGIC = b"MEGAORIG"
HEADER = struct.Struct("<8sQQQ")
PIECE = 1 << 20


class Origin(NamedTuple):
    """The input, the byte in it at which the text began, and the document's own name, if it has one."""

    path: str
    offset: int
    name: str


class OriginColumns(NamedTuple):
    """The origins of some documents: an entry each, but `names`, which are joined."""

    offsets: NDArray[np.int64]
    files: NDArray[np.int32]
    name_bytes: NDArray[np.int64]
    names: NDArray[np.uint8]


def origins_path(prefix: str | Path) -> Path:
    """Return the file of the origins of `prefix`."""
    return Path(f"{prefix}.origins")


class Origins:
    """The origins of a dataset's documents, mapped into memory."""

    def __init__(self, path: Path, num_documents: int) -> None:
        """Open `path`; UserError where it is not of so many documents."""
        with open(path, "rb") as file:
            header = file.read(HEADER.size)
        if len(header) < HEADER.size or not header.startswith(MAGIC):
            raise UserError(
                f"{path} is no file of origins (begins with {header[:8]!r}); copy it again or delete it"
            )
        _, documents, names, inputs = HEADER.unpack(header)
        borders = np.cumsum(
            [HEADER.size, 8 * documents, 4 * documents, 8 * documents, names, inputs]
        ).tolist()
        size = path.stat().st_size
        if documents != num_documents or size != borders[-1]:
            raise UserError(
                f"{path} has {size} bytes for {documents} documents where its header says {borders[-1]} and the dataset has "
                f"{num_documents} documents; copy it again or delete it"
            )
        data = np.asarray(np.memmap(path, np.uint8, "r"))
        self._offsets, self._files, self._name_ends = (
            np.frombuffer(data, kind, documents, start)
            for kind, start in zip(("<i8", "<i4", "<i8"), borders, strict=False)
        )
        self._names = data[borders[3] : borders[4]]
        try:
            self.inputs: list[str] = json.loads(data[borders[4] :].tobytes())
        except ValueError as error:
            raise UserError(
                f"{path}: the list of inputs at byte {borders[4]} is not JSON ({error}); copy it again or delete it"
            ) from None

    @classmethod
    def of(cls, prefix: str | Path, num_documents: int) -> "Origins | None":
        """Return the origins of `prefix`, None where they are not recorded."""
        path = origins_path(prefix)
        return cls(path, num_documents) if path.exists() else None

    def origin(self, document: int) -> Origin:
        """Return where a document came from."""
        columns = self.columns(document, document + 1)
        path = self.inputs[int(columns.files[0])]
        return Origin(path, int(columns.offsets[0]), columns.names.tobytes().decode("utf-8", "replace"))

    def columns(self, first: int, stop: int) -> OriginColumns:
        """Return the origins of documents [first, stop)."""
        ends = self._name_ends[first:stop].astype(np.int64)
        begin = int(self._name_ends[first - 1]) if first else 0
        names = self._names[begin : int(ends[-1]) if len(ends) else begin]
        return OriginColumns(
            self._offsets[first:stop], self._files[first:stop], np.diff(ends, prepend=begin), names
        )


def head_and_inputs(documents: int, name_bytes: int, inputs: Sequence[str]) -> tuple[bytes, bytes]:
    """Return what the file begins with, and the list of inputs that it ends with."""
    listed = json.dumps(list(inputs), ensure_ascii=False).encode()
    return HEADER.pack(MAGIC, documents, name_bytes, len(listed)), listed


class OriginsWriter:
    """Streams origins into a file; they wait in spool files, so memory does not grow."""

    def __init__(self, folder: Path, inputs: Sequence[str]) -> None:
        """inputs: the paths that the numbers of files stand for."""
        self._inputs = inputs
        self._stack = contextlib.ExitStack()
        self._spools: list[IO[bytes]] = []
        for _ in range(4):
            self._spools.append(self._stack.enter_context(tempfile.TemporaryFile(dir=folder)))  # noqa: SIM115
        self._documents = self._name_bytes = 0

    def add(self, columns: OriginColumns) -> None:
        """Append the origins of some documents."""
        ends = self._name_bytes + np.cumsum(columns.name_bytes, dtype=np.int64)
        arrays = (
            columns.offsets.astype("<i8"),
            columns.files.astype("<i4"),
            ends.astype("<i8"),
            columns.names,
        )
        for spool, array in zip(self._spools, arrays, strict=True):
            spool.write(array.tobytes())
        self._documents += len(columns.offsets)
        self._name_bytes += len(columns.names)

    def finish(self, file: IO[bytes]) -> None:
        """Write all of it to `file`."""
        head, inputs = head_and_inputs(self._documents, self._name_bytes, self._inputs)
        file.write(head)
        for spool in self._spools:
            for piece in _pieces(spool):
                file.write(piece)
        file.write(inputs)

    def close(self) -> None:
        """Drop the spool files."""
        self._stack.close()


def _pieces(file: IO[Any]) -> Iterator[bytes]:
    file.seek(0)
    while piece := file.read(PIECE):
        yield piece
