"""Writes token files in Megatron's .bin/.idx format, and what lies beside them, as a stream."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from megalm import atomic
from megalm.dataset.checksums import checksums, crc_path, header
from megalm.dataset.indexed import BLOCK, CODE_OF_DTYPE, HEADER, MAGIC, VERSION, bin_path, idx_path
from megalm.dataset.loss_mask import LossMaskWriter, mask_path
from megalm.dataset.origins import OriginColumns, OriginsWriter, origins_path
from megalm.errors import UserError
from megalm.hashes import sha256_of


class IndexedDatasetWriter:
    """Streams documents into `prefix`.bin/.idx; both appear at the end of the `with` block, or neither.

    Memory does not grow with the data: lengths and borders wait in spool files.
    """

    def __init__(
        self,
        prefix: str | Path,
        dtype: np.dtype[Any],
        masked: bool = False,
        inputs: Sequence[str] | None = None,
    ) -> None:
        """masked: every document tells which of its tokens count in the loss, which makes a `prefix`.mask. inputs: every
        document tells which of these it came from, which makes a `prefix`.origins."""
        self.prefix = Path(prefix)
        self.dtype = np.dtype(dtype)
        self.num_sequences = self.num_documents = self.num_tokens = 0
        self._masked, self._inputs = masked, inputs
        self._digest = hashlib.sha256()
        self.side_digests: dict[str, str] = {}
        """Digests (hex) of the .idx and what else lies beside the .bin, as a sidecar names them; after the `with` block."""

    def __enter__(self) -> "IndexedDatasetWriter":
        folder = self.prefix.parent
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            self._bin = stack.enter_context(self._temporary("bin"))
            self._lengths = stack.enter_context(tempfile.TemporaryFile(dir=folder))
            self._borders = stack.enter_context(tempfile.TemporaryFile(dir=folder))
            self._borders.write(np.zeros(1, "<i8").tobytes())
            self._crc = stack.enter_context(self._temporary("crc"))
            self._crc.write(header(0))
            self._mask = self._origins = None
            if self._masked:
                self._mask_file = stack.enter_context(self._temporary("mask"))
                self._mask = LossMaskWriter(self._mask_file)
            if self._inputs is not None:
                self._origins_file = stack.enter_context(self._temporary("origins"))
                self._origins = OriginsWriter(folder, self._inputs)
                stack.callback(self._origins.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        with self._stack:
            if kind is None:
                self._publish()

    @property
    def sha256(self) -> str:
        """Digest (hex) of the .bin so far."""
        return self._digest.hexdigest()

    def add_document(self, tokens: NDArray[Any]) -> None:
        """Append one document of one sequence."""
        self.add_documents(tokens, np.array([len(tokens)]))

    def add_documents(
        self,
        tokens: NDArray[Any],
        lengths: NDArray[Any],
        ends: NDArray[Any] | None = None,
        counts: NDArray[np.uint8] | None = None,
        origins: OriginColumns | None = None,
    ) -> None:
        """Append sequences, their ids one after another.

        `ends` says after which of them (counted from the first) each document ends; by default after each. `counts` has a
        1 for each token that counts in the loss, a 0 for each other one, and is given where the writer was told so; the
        same goes for `origins`, an entry a document.
        """
        if ends is None:
            ends = np.arange(1, len(lengths) + 1)
        check_lengths(lengths)
        tokens = np.ascontiguousarray(tokens, self.dtype)
        borders = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[np.concatenate([[0], ends])]
        self._crc.write(checksums(tokens, borders).astype("<u4").tobytes())
        self._write_tokens(tokens)
        self._lengths.write(lengths.astype("<i4").tobytes())
        self._borders.write((ends.astype("<i8") + self.num_sequences).tobytes())
        if self._mask is not None:
            assert counts is not None and len(counts) == len(tokens)
            self._mask.add(counts)
        if self._origins is not None:
            assert origins is not None and len(origins.offsets) == len(ends)
            self._origins.add(origins)
        self.num_tokens += len(tokens)
        self.num_sequences += len(lengths)
        self.num_documents += len(ends)

    def _write_tokens(self, tokens: NDArray[Any]) -> None:
        if not len(tokens):
            return
        data = tokens.data.cast("B")
        self._digest.update(data)
        if tokens.any():
            self._bin.write(data)
        else:  # a hole in the file stays one in its copy
            self._bin.seek(len(data), os.SEEK_CUR)

    def _publish(self) -> None:
        self._bin.truncate(self.num_tokens * self.dtype.itemsize)
        self._crc.seek(0)
        self._crc.write(header(self.num_documents))
        ready = [(self._bin, bin_path(self.prefix)), (self._crc, crc_path(self.prefix))]
        if self._mask is not None:
            self._mask.finish()
            ready.append((self._mask_file, mask_path(self.prefix)))
        if self._origins is not None:
            self._origins.finish(self._origins_file)
            ready.append((self._origins_file, origins_path(self.prefix)))
        for file, path in ready:
            file.flush()
            os.fsync(file.fileno())
            if path.suffix in (".mask", ".origins"):
                self.side_digests[f"{path.suffix[1:]}_sha256"] = sha256_of(file.name)
        with atomic.open_atomic(idx_path(self.prefix)) as idx:
            digest = hashlib.sha256()
            for part in self._index():
                digest.update(part)
                idx.write(part)
            self.side_digests["idx_sha256"] = digest.hexdigest()
            # An old index must never describe the new ids, nor the new one the old ids.
            for path_of in (idx_path, crc_path, mask_path, origins_path):
                path_of(self.prefix).unlink(missing_ok=True)
            for file, path in ready:
                os.replace(file.name, path)

    def _index(self) -> Iterator[bytes]:
        """The .idx in pieces."""
        size = self.dtype.itemsize
        code = CODE_OF_DTYPE[self.dtype]
        yield HEADER.pack(MAGIC, VERSION, code, self.num_sequences, self.num_documents + 1)
        for block in _blocks(self._lengths, "<i4"):
            yield block.tobytes()
        end = 0
        for block in _blocks(self._lengths, "<i4"):
            ends = end + np.cumsum(block, dtype=np.int64) * size
            yield (ends - block.astype(np.int64) * size).astype("<i8").tobytes()
            end = int(ends[-1])
        for block in _blocks(self._borders, "<i8"):
            yield block.tobytes()

    @contextlib.contextmanager
    def _temporary(self, kind: str) -> Iterator[IO[bytes]]:
        """Yield a file beside the result that is gone at the end unless it was renamed."""
        path = self.prefix.parent / f".{self.prefix.name}.{os.getpid()}.{kind}.tmp"
        try:
            with open(path, "wb") as file:
                yield file
        finally:
            path.unlink(missing_ok=True)


def check_lengths(lengths: NDArray[Any]) -> None:
    """Raise UserError for a sequence that is too long for the format."""
    if len(lengths) and lengths.max() > np.iinfo(np.int32).max:
        raise UserError(f"a document has {lengths.max()} tokens; the format holds 2^31 - 1, cut it")


def _blocks(file: IO[bytes], dtype: str) -> Iterator[NDArray[Any]]:
    file.seek(0)
    while data := file.read(BLOCK * np.dtype(dtype).itemsize):
        yield np.frombuffer(data, dtype)
