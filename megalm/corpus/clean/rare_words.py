"""The step `rare_words`: removes documents made of words that hardly any other document has, such as garbled text."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from pydantic import Field

from megalm import atomic
from megalm.corpus.shards import ReadShards, WriteShards
from megalm.corpus.step import Collective, Filter, ForLanguages, Stage
from megalm.corpus.words import words_of

BUCKETS = 1 << 22


class RareWords(Collective):
    """Counts in how many documents of the corpus each word stands, and removes documents with too many rare ones.

    Counts lie in 2^22 buckets of words' hashes, 16 MiB whatever the corpus: now and then a rare word shares its bucket with
    a common one and passes for common, never the other way round.
    """

    name = "rare_words"

    class Settings(ForLanguages):
        """Options of the step `rare_words`."""

        min_documents: int = Field(3, ge=2, description="A word in fewer documents is rare.")
        max_share: float = Field(
            0.3,
            ge=0,
            le=1,
            description="Greatest share of rare words, numbers left out, in a document that stays.",
        )

    settings: Settings

    def stages(self, source: Path, work: Path, target: Path, tasks: int) -> list[Stage]:
        """Count in each task, add up, remove."""
        keep = KeepCommon(self.settings, work / "counts.npy")
        return [
            Stage("count", tasks, [ReadShards(source), CountWords(work / "counts")]),
            Stage("add", 1, [AddCounts(work / "counts", work / "counts.npy")]),
            Stage("remove", tasks, [ReadShards(source), keep, WriteShards(target)]),
        ]


class CountWords(PipelineStep):
    """Leaves in how many of a task's documents each bucket's words stand."""

    type = "corpus"
    name = "count words"

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        """Count; no documents come out."""
        counts = np.zeros(BUCKETS, np.uint32)
        for document in data:
            counts[buckets_of(document)] += 1  # once, however often a bucket is named
        _save(self.folder / f"{rank:05d}.npy", counts)
        return iter(())


class AddCounts(PipelineStep):
    """Adds the counts of all tasks up."""

    type = "corpus"
    name = "add counts"

    def __init__(self, folder: Path, target: Path):
        super().__init__()
        self.folder, self.target = folder, target

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        """Add; no documents come out."""
        total = np.zeros(BUCKETS, np.uint32)
        for path in sorted(self.folder.glob("*.npy")):
            total += np.load(path)
        _save(self.target, total)
        return iter(())


class KeepCommon(Filter):
    """Removes the documents with too many rare words."""

    name = "rare_words"
    settings: RareWords.Settings

    def __init__(self, settings: RareWords.Settings, counts: Path):
        super().__init__(settings)
        self.counts = counts

    def start(self) -> None:
        """Map the counts, which all workers of a machine share."""
        self._counts = np.load(self.counts, mmap_mode="r")

    def check(self, document: Document) -> str | None:
        """A reason where too many words are rare."""
        buckets = buckets_of(document)
        if not len(buckets):
            return None
        share = float((self._counts[buckets] < self.settings.min_documents).mean())
        self.observe("rare_words", share)
        return "rare_words.too_many" if share > self.settings.max_share else None


def buckets_of(document: Document) -> np.ndarray:
    """The bucket of each word of the document that is no number, whatever its case."""
    words = (word.lower().encode("utf-8", "replace") for word in words_of(document) if word[-1].isalpha())
    return np.fromiter(map(zlib.crc32, words), np.int64) % BUCKETS


def _save(path: Path, counts: np.ndarray) -> None:
    with atomic.open_atomic(path) as file:
        np.save(file, counts)
