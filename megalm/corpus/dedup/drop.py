"""Removes the copies that were decided on, says beside each which document stays, and counts them."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import orjson
from datatrove.data import Document

from megalm import atomic
from megalm.corpus.dedup.catalog import KNOWN, Catalog, number_of
from megalm.corpus.dedup.clusters import decisions_of
from megalm.corpus.step import Step

DUPLICATE_OF = "duplicate_of"
"""Metadata key: the id of the document that stays in the place of this one."""
COPIES = "copies"
"""Metadata key: how many documents the cluster of this one has."""

_AT_ONCE = 1 << 12


class DropCopies(Step):
    """Removes a task's documents that are copies; with `mark` they stay, with the survivor's id in their metadata.

    `matches`/RANK.jsonl lists every removed (or marked) document with the one that stays.
    """

    def __init__(self, name: str, work: Path, indexes: list[Path], mark: bool, matches: Path | None):
        self.name = name
        super().__init__()
        self.folder, self.indexes, self.mark, self.matches = work, indexes, mark, matches

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        """Yield the documents that stay."""
        self._number = number_of(rank, 0) - 1
        self._decisions = self._read(rank)
        self._following = next(self._decisions, None)
        self._catalog = Catalog(self.folder / "catalog", [index / "catalog" for index in self.indexes])
        self._list: IO[bytes] | None = None
        with ExitStack() as stack:
            if self.matches:
                self._list = stack.enter_context(atomic.open_atomic(self.matches / f"{rank:05d}.jsonl"))
            yield from super().run(data, rank, world_size)

    def apply(self, document: Document) -> str | None:
        """A reason for a copy of a document that stays."""
        self._number += 1
        if self._following is None or self._following[0] != self._number:
            return None
        _, survivor, size = self._following
        self._following = next(self._decisions, None)
        if survivor == self._number:
            document.metadata[COPIES] = size
            self.observe(COPIES, size)
            return None
        return self._copy(document, survivor)

    def _read(self, rank: int) -> Iterator[list[int]]:
        for rows in decisions_of(self.folder, rank):
            for i in range(0, rows.shape[1], _AT_ONCE):
                yield from rows[:, i : i + _AT_ONCE].T.tolist()

    def _copy(self, document: Document, survivor: int) -> str | None:
        document.metadata[DUPLICATE_OF] = self._catalog.id(survivor)
        if self._list:
            line = {
                "id": document.id,
                DUPLICATE_OF: document.metadata[DUPLICATE_OF],
                "in_index": survivor >= KNOWN,
            }
            self._list.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        reason = f"{self.name}.in_index" if survivor >= KNOWN else f"{self.name}.copy"
        if self.mark:
            self.count(f"marked {reason}")
            return None
        return reason
