"""An index: what later builds need to find copies of the documents of this one, as a directory that is moved as a whole."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from datatrove.data import Document
from numpy.typing import NDArray

from megalm import atomic
from megalm.corpus.dedup.catalog import MAX_INDEXES, catalog_files, number_of
from megalm.corpus.dedup.clusters import decisions_of
from megalm.corpus.dedup.runs import load_rows, run_paths, save_rows
from megalm.corpus.dedup.task import Task
from megalm.corpus.dedup.verify import write_sets
from megalm.errors import UserError

DESCRIPTION = "index.json"
_OWNER = "build"


class SaveIndex(Task):
    """Copies the keys and entries of a task's documents that stay to `target`; with `ngram` their sets of n-grams too."""

    name = "index"

    def __init__(self, work: Path, target: Path, ngram: int | None):
        super().__init__()
        self.folder, self.target, self.ngram = work, target, ngram

    def work(self, documents: Iterable[Document], rank: int, world_size: int) -> None:
        """Write the part of the shard `rank`."""
        low, high = number_of(rank, 0), number_of(rank + 1, 0)
        pieces = [rows[0][rows[0] != rows[1]] for rows in decisions_of(self.folder, rank)]
        removed = np.concatenate([np.empty(0, np.uint64), *pieces])
        for path in run_paths(self.folder / "keys", rank):
            rows = load_rows(path)
            save_rows(self.target / "keys" / path.name, rows[:, ~np.isin(rows[1], removed)])
        pairs = zip(
            *(catalog_files(folder / "catalog", rank) for folder in (self.folder, self.target)), strict=True
        )
        for source, copy in pairs:
            with open(source, "rb") as reader, atomic.open_atomic(copy) as writer:
                shutil.copyfileobj(reader, writer)
        if self.ngram:
            write_sets(self.target, rank, documents, _others(removed, low, high), self.ngram)


class FinishIndex(Task):
    """Removes what an earlier build left behind, then writes the description that says that the index is complete."""

    name = "finish index"

    def __init__(self, work: Path, target: Path, fingerprint: str, ngram: int | None):
        super().__init__()
        self.folder, self.target, self.fingerprint, self.ngram = work, target, fingerprint, ngram

    def work(self, documents: Iterable[Document], rank: int, world_size: int) -> None:
        """Write it."""
        entries = {path.name for path in (self.folder / "catalog").iterdir()}
        shards = {f"{name[:5]}.{suffix}" for name in entries for suffix in ("npy", "sets") if self.ngram}
        keys = {path.name for path in run_paths(self.folder / "keys")}
        for kind, names in (("keys", keys), ("catalog", entries), ("shingles", shards)):
            for path in (self.target / kind).glob("*"):
                if path.name not in names:
                    path.unlink()
        description = {
            "kind": "megalm index",
            "fingerprint": self.fingerprint,
            "shingles": self.ngram is not None,
        }
        atomic.write_text(self.target / DESCRIPTION, json.dumps(description, indent=2) + "\n")


def own_index(target: Path, work: Path) -> None:
    """Take the directory `target` for the build that works in `work`; raises UserError if something else is there."""
    path = target / _OWNER
    if path.exists():
        if path.read_text(encoding="utf-8") == str(work):
            return
    elif not target.exists() or not any(target.iterdir()):
        atomic.write_text(path, str(work))
        return
    raise UserError(f"`save_index` {target} holds files that another build made; name a new directory")


def check_indexes(indexes: list[Path], fingerprint: str, shingles: bool) -> None:
    """Raise UserError unless all `indexes` are complete and were made with the same keys (and hold n-grams)."""
    if len(indexes) > MAX_INDEXES:
        raise UserError(
            f"{len(indexes)} indexes are given; at most {MAX_INDEXES} can be compared with at once"
        )
    for index in indexes:
        path = index / DESCRIPTION
        if not path.exists():
            raise UserError(
                f"{index} is no complete index ({DESCRIPTION} is missing); name one made by `save_index`"
            )
        description = json.loads(path.read_text(encoding="utf-8"))
        if description.get("fingerprint") != fingerprint:
            raise UserError(
                f"index {index} was made with other settings or library versions "
                f"({description.get('fingerprint')}, now {fingerprint}); use the same or build it again"
            )
        if shingles and not description.get("shingles"):
            raise UserError(
                f"index {index} was made without `verify`; build it again with it, or switch it off here"
            )


def _others(removed: NDArray[np.uint64], low: int, high: int) -> Iterator[int]:
    gone = set(removed.tolist())
    return (number for number in range(low, high) if number not in gone)
