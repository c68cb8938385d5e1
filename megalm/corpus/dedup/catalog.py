"""What is remembered of each document: its place, its id, and which of several copies is to stay."""

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from datatrove.data import Document
from numpy.typing import NDArray
from pydantic import Field

from megalm import atomic
from megalm.config.section import Section
from megalm.corpus.dedup.hashing import hash_text

PLACE_BITS = 40
"""A document's number is its shard's number and its place there, in so many bits."""
KNOWN = 1 << 63
"""Set in the numbers of documents of an index, which stay whatever comes."""
SHARD_BITS = 18
"""A shard's number within an index, in so many bits; the index's own number stands above them."""
_OPEN_FILES = 64
MAX_INDEXES = 1 << (63 - PLACE_BITS - SHARD_BITS)

ENTRY = np.dtype([("source", "<u8"), ("score", "<f8"), ("id", "<u8"), ("text", "<u8"), ("name", "<u8")])
"""Rank of the source (less is better), score (more is better), hashes of id and text, end of the id's bytes."""


class Preference(Section):
    """Which of several copies stays."""

    prefer_sources: list[str] = Field(
        [],
        description="Values of `source_key`, best first: a copy from an earlier one stays; others come after these.",
    )
    source_key: str = Field("source", description="The metadata key that `prefer_sources` speaks of.")
    score_key: str | None = Field(
        None,
        description="Among copies of equally good sources the one with the highest number under this metadata key "
        "stays. Remaining ties go to the smallest hash of the document's id.",
    )


class CatalogWriter:
    """Writes the entries of the documents of one shard, in order, without holding them."""

    def __init__(self, folder: Path, shard: int, preference: Preference):
        self._ranks = {source: rank + 1 for rank, source in enumerate(preference.prefer_sources)}
        self._preference = preference
        self._paths = _paths(folder, shard)
        self._stack = ExitStack()
        self._files: list[IO[bytes]] = []
        self._end = 0

    def __enter__(self) -> "CatalogWriter":
        self._files = [self._stack.enter_context(atomic.open_atomic(path)) for path in self._paths]
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, documents: Sequence[Document]) -> None:
        """Append the entries of `documents`."""
        entries = np.empty(len(documents), ENTRY)
        names = [document.id.encode("utf-8", "surrogatepass") for document in documents]
        for i, (document, name) in enumerate(zip(documents, names, strict=True)):
            self._end += len(name)
            source = document.metadata.get(self._preference.source_key)
            rank = self._ranks.get(str(source), len(self._ranks) + 1)
            score = _score(document.metadata.get(self._preference.score_key or ""))
            entries[i] = (rank, score, hash_text(document.id), hash_text(document.text), self._end)
        self._files[0].write(entries.tobytes())
        self._files[1].write(b"".join(names))


class Catalog:
    """The entries of the documents of a corpus, and of the indexes it is compared with, by number."""

    def __init__(self, folder: Path, known: Iterable[Path] = ()):
        self._folder = folder
        self._known = list(known)
        self._open: dict[Path, IO[bytes]] = {}

    def entries(self, numbers: NDArray[np.uint64]) -> NDArray[Any]:
        """The entries of documents by ascending numbers; those of an index have the best source, 0."""
        found = np.empty(len(numbers), ENTRY)
        shards = numbers >> np.uint64(PLACE_BITS)
        borders = [0, *(np.flatnonzero(shards[1:] != shards[:-1]) + 1).tolist(), len(numbers)]
        for begin, end in pairwise(borders if len(numbers) else []):
            shard = int(shards[begin])
            places = (numbers[begin:end] & np.uint64((1 << PLACE_BITS) - 1)).astype(np.int64)
            found[begin:end] = np.memmap(self._path(shard)[0], ENTRY, "r")[places]
        found["source"][numbers >= np.uint64(KNOWN)] = 0
        return found

    def id(self, number: int) -> str:
        """The id of a document."""
        shard, place = number >> PLACE_BITS, number & ((1 << PLACE_BITS) - 1)
        entries_path, names_path = self._path(shard)
        first = max(0, place - 1)
        entries = np.frombuffer(
            self._read(entries_path, first * ENTRY.itemsize, (place + 1 - first) * ENTRY.itemsize), ENTRY
        )
        begin, end = int(entries["name"][0]) if place else 0, int(entries["name"][-1])
        return self._read(names_path, begin, end - begin).decode("utf-8", "surrogatepass")

    def _read(self, path: Path, offset: int, size: int) -> bytes:
        """Bytes of a file, which stays open for the next time."""
        if path not in self._open:
            if len(self._open) == _OPEN_FILES:
                self._open.pop(next(iter(self._open))).close()
            self._open[path] = open(path, "rb", buffering=0)  # noqa: SIM115 (kept)
        return os.pread(self._open[path].fileno(), size, offset)

    def _path(self, shard: int) -> tuple[Path, Path]:
        known = KNOWN >> PLACE_BITS
        if shard < known:
            return _paths(self._folder, shard)
        folder = self._known[(shard - known) >> SHARD_BITS]
        return _paths(folder, shard & ((1 << SHARD_BITS) - 1))


def number_of(shard: int, place: int) -> int:
    """The number of the document at `place` of `shard`."""
    return shard << PLACE_BITS | place


def documents_in(folder: Path, shard: int) -> int:
    """How many documents a shard has."""
    return _paths(folder, shard)[0].stat().st_size // ENTRY.itemsize


def shards_in(folder: Path) -> list[int]:
    """The numbers of the shards, in order."""
    return sorted(int(path.stem) for path in folder.glob("*.entries"))


def index_mark(index: int) -> int:
    """What is set in the numbers of documents of index number `index` to tell them from others."""
    return KNOWN | index << (PLACE_BITS + SHARD_BITS)


def best_first(entries: NDArray[Any]) -> NDArray[np.int64]:
    """The order of documents from the one that stays to the one that goes first; nothing in it depends on shards."""
    return np.lexsort((entries["text"], entries["id"], -entries["score"], entries["source"]))


def catalog_files(folder: Path, shard: int) -> tuple[Path, Path]:
    """The files that hold the entries of one shard."""
    return _paths(folder, shard)


def _paths(folder: Path, shard: int) -> tuple[Path, Path]:
    return folder / f"{shard:05d}.entries", folder / f"{shard:05d}.ids"


def _score(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and value == value else float("-inf")
