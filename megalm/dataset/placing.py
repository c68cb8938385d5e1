"""Writes a dataset whose size is known from many places at once: each writer fills its own bytes of the same files."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megalm.dataset import checksums, indexed, loss_mask, origins
from megalm.dataset.runs import Documents, Place
from megalm.dataset.writer import check_lengths

Edge = tuple[int, int]
"""A byte of the mask that two writers may share: its number, and the bits of one of them."""


@dataclass(frozen=True)
class Layout:
    """The files of a dataset of `size`; each document is one sequence."""

    prefix: Path
    dtype: np.dtype[Any]
    size: Place
    masked: bool
    """Whether it says which tokens count in the loss."""
    inputs: list[str] | None
    """The inputs that documents came from, None where that is not recorded."""

    def allocate(self) -> None:
        """Make the files in their full size, all but the documents' own bytes written."""
        self.prefix.parent.mkdir(parents=True, exist_ok=True)
        documents, tokens, names = self.size
        code = indexed.CODE_OF_DTYPE[self.dtype]
        index = indexed.HEADER.pack(indexed.MAGIC, indexed.VERSION, code, documents, documents + 1)
        _allocate(indexed.bin_path(self.prefix), b"", tokens * self.dtype.itemsize)
        _allocate(indexed.idx_path(self.prefix), index, 20 * documents + 8)
        _allocate(checksums.crc_path(self.prefix), checksums.header(documents), 4 * documents)
        if self.masked:
            header = loss_mask.HEADER.pack(loss_mask.MAGIC, tokens)
            _allocate(loss_mask.mask_path(self.prefix), header, -(-tokens // 8))
        if self.inputs is not None:
            header, listed = origins.head_and_inputs(documents, names, self.inputs)
            _allocate(origins.origins_path(self.prefix), header, 20 * documents + names, listed)

    def paths(self) -> dict[str, Path]:
        """Return the files by their kinds, in the order in which a sidecar names them."""
        paths = {"bin": indexed.bin_path(self.prefix)}
        if self.masked:
            paths["mask"] = loss_mask.mask_path(self.prefix)
        if self.inputs is not None:
            paths["origins"] = origins.origins_path(self.prefix)
        return {**paths, "idx": indexed.idx_path(self.prefix), "crc": checksums.crc_path(self.prefix)}

    def write_edges(self, edges: Iterable[Edge]) -> None:
        """Write the bytes of the mask that writers left because they share them."""
        bits: dict[int, int] = {}
        for byte, value in edges:
            bits[byte] = bits.get(byte, 0) | value
        with open(loss_mask.mask_path(self.prefix), "r+b") as file:
            for byte, value in bits.items():
                file.seek(loss_mask.HEADER.size + byte)
                file.write(bytes([value]))
            file.flush()
            os.fsync(file.fileno())


class PlacedWriter:
    """Writes documents from `place` on; what it wrote is on disk at the end of the `with` block."""

    def __init__(self, layout: Layout, place: Place) -> None:
        self.layout, self.place = layout, place
        self.edges: list[Edge] = []
        """What `Layout.write_edges` must be given; complete after the `with` block."""
        # bits of a byte that is not full yet, those of the writer before among them
        self._bits = np.zeros(place.tokens % 8 if layout.masked else 0, np.uint8)

    def __enter__(self) -> "PlacedWriter":
        # Not opened for reading: a client of NFS would read and write back pages that other writers share.
        self._files = {kind: os.open(path, os.O_WRONLY) for kind, path in self.layout.paths().items()}
        return self

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        try:
            if kind is None:
                if len(self._bits):
                    self._add_edge(self.place.tokens // 8, self._bits)
                for descriptor in self._files.values():
                    os.fsync(descriptor)
        finally:
            for descriptor in self._files.values():
                os.close(descriptor)

    def add(self, documents: Documents) -> None:
        """Write documents behind those written before."""
        lengths = documents.rows["tokens"]
        check_lengths(lengths)
        ends = np.cumsum(lengths, dtype=np.int64)
        self._put("bin", self.place.tokens * self.layout.dtype.itemsize, documents.tokens)
        self._put_index(lengths, ends)
        crc = checksums.checksums(documents.tokens, np.concatenate([[0], ends]))
        self._put("crc", checksums.HEADER.size + 4 * self.place.documents, crc.astype("<u4"))
        if self.layout.masked:
            self._put_mask(documents.counts)
        if self.layout.inputs is not None:
            self._put_origins(documents)
        added = Place(len(lengths), len(documents.tokens), len(documents.names))
        self.place = self.place.plus(added)

    def _put_index(self, lengths: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        first, total, at = self.place.documents, self.layout.size.documents, indexed.HEADER.size
        pointers = (self.place.tokens + ends - lengths) * self.layout.dtype.itemsize
        borders = np.arange(first + 1, first + 1 + len(lengths))
        self._put("idx", at + 4 * first, lengths.astype("<i4"))
        self._put("idx", at + 4 * total + 8 * first, pointers.astype("<i8"))
        self._put("idx", at + 12 * total + 8 * (first + 1), borders.astype("<i8"))

    def _put_mask(self, counts: NDArray[np.uint8]) -> None:
        first_byte = (self.place.tokens - len(self._bits)) // 8
        bits = np.concatenate([self._bits, counts])
        whole = len(bits) // 8 * 8
        packed, self._bits = np.packbits(bits[:whole], bitorder="little"), bits[whole:]
        if len(packed) and not self.edges:  # the byte that may begin with bits of the writer before
            self._add_edge(first_byte, bits[:8])
            first_byte, packed = first_byte + 1, packed[1:]
        self._put("mask", loss_mask.HEADER.size + first_byte, packed)

    def _add_edge(self, byte: int, bits: NDArray[np.uint8]) -> None:
        self.edges.append((byte, int(np.packbits(bits, bitorder="little")[0])))

    def _put_origins(self, documents: Documents) -> None:
        first, total, at = self.place.documents, self.layout.size.documents, origins.HEADER.size
        rows = documents.rows
        ends = self.place.names + np.cumsum(rows["name"], dtype=np.int64)
        self._put("origins", at + 8 * first, rows["offset"].astype("<i8"))
        self._put("origins", at + 8 * total + 4 * first, rows["file"].astype("<i4"))
        self._put("origins", at + 12 * total + 8 * first, ends.astype("<i8"))
        self._put("origins", at + 20 * total + self.place.names, documents.names)

    def _put(self, kind: str, offset: int, values: NDArray[Any]) -> None:
        data = memoryview(np.ascontiguousarray(values).view(np.uint8).data)
        while len(data):  # one call takes at most 2 GiB
            count = os.pwrite(self._files[kind], data, offset)
            data, offset = data[count:], offset + count


def _allocate(path: Path, head: bytes, room: int, tail: bytes = b"") -> None:
    """Make a file of `room` zero bytes between a head and a tail."""
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(len(head) + room)
        file.seek(len(head) + room)
        file.write(tail)
        file.flush()
        os.fsync(file.fileno())
