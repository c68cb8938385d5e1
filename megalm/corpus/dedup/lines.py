"""The step `duplicate_lines` of a recipe: lines or paragraphs that stand elsewhere in the corpus too are cut out."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datatrove.data import Document
from pydantic import Field

from megalm.corpus.dedup.catalog import (
    Catalog,
    CatalogWriter,
    Preference,
    best_first,
    documents_in,
    number_of,
)
from megalm.corpus.dedup.hashing import hash_words, in_batches
from megalm.corpus.dedup.runs import Run, RunWriter, groups, key_range, members, ranges, run_paths
from megalm.corpus.dedup.shingles import sequence_hashes
from megalm.corpus.dedup.task import Task
from megalm.corpus.shards import ReadShards, WriteShards
from megalm.corpus.step import Collective, Stage, Transform

_GAP = re.compile(r"\n[^\S\n]*\n\s*")


class DuplicateLines(Collective):
    """Keeps a line (or paragraph) in `max_copies` places of the corpus and cuts it out of all others.

    The places are those of the documents that the preference puts first, in the order of their text. Lines are equal if their
    words are: case, punctuation and white space make no difference.
    """

    name = "duplicate_lines"

    class Settings(Preference):
        """Options of the step `duplicate_lines`."""

        unit: Literal["line", "paragraph"] = Field(
            "line", description="What is compared: lines, or paragraphs (apart by an empty line)."
        )
        min_words: int = Field(
            3, ge=1, description="Lines of fewer words stay whatever comes, such as braces in code."
        )
        max_copies: int = Field(1, ge=1, description="In how many places of the corpus a line may stand.")
        min_characters: int = Field(
            1,
            ge=1,
            description="Remove documents that fewer characters are left of after lines were cut out.",
        )

    settings: Settings

    def stages(self, source: Path, work: Path, target: Path, tasks: int) -> list[Stage]:
        """Hashes of lines, choice of those that stay, cutting."""
        cut = CutLines(work, self.settings)
        return [
            Stage("lines", tasks, [ReadShards(source), WriteLines(work, self.settings)]),
            Stage("repeats", tasks, [FindRepeats(work, self.settings.max_copies)]),
            Stage("cut", tasks, [ReadShards(source), cut, WriteShards(target)]),
        ]


class WriteLines(Task):
    """Leaves rows (hash, document, line) of a task's documents in `work`/lines, and their entries in `work`/catalog."""

    name = "lines"

    def __init__(self, work: Path, settings: DuplicateLines.Settings):
        super().__init__()
        self.folder, self.settings = work, settings

    def work(self, documents: Iterable[Document], rank: int, world_size: int) -> None:
        """Write the runs and the catalog of the shard `rank`."""
        runs = RunWriter(self.folder / "lines", rank, 3)
        place = 0
        with CatalogWriter(self.folder / "catalog", rank, self.settings) as catalog:
            for batch in in_batches(documents):
                catalog.add(batch)
                lines = [split(document.text, self.settings.unit) for document in batch]
                counts = [len(own) for own in lines]
                words = hash_words([line for own in lines for line in own])
                numbers = np.arange(place, place + len(batch), dtype=np.uint64) + np.uint64(
                    number_of(rank, 0)
                )
                within = np.concatenate([np.arange(count, dtype=np.uint64) for count in counts])
                long = np.diff(words.borders) >= self.settings.min_words
                runs.add(sequence_hashes(words)[long], np.repeat(numbers, counts)[long], within[long])
                place += len(batch)
        runs.close()


class FindRepeats(Task):
    """Leaves rows (document, line) of the lines to be cut out, of one range of hashes, in `work`/repeats."""

    name = "repeats"

    def __init__(self, work: Path, max_copies: int):
        super().__init__()
        self.folder, self.max_copies = work, max_copies

    def work(self, documents: Iterable[Document], rank: int, world_size: int) -> None:
        """Choose the places in which each line stays."""
        repeats = RunWriter(self.folder / "repeats", rank, 2)
        catalog = Catalog(self.folder / "catalog")
        runs = [Run(path) for path in run_paths(self.folder / "lines")]
        for rows in ranges(runs, *key_range(rank, world_size), columns=3):
            starts, ends = groups(rows)
            keys, numbers, lines = rows[:, members(starts, ends)]
            own, inverse = np.unique(numbers, return_inverse=True)
            place = np.empty(len(own), np.int64)
            place[best_first(catalog.entries(own))] = np.arange(len(own))
            order = np.lexsort((lines, place[inverse], keys))
            lengths = ends - starts
            nth = np.arange(len(keys)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            surplus = order[nth >= self.max_copies]
            repeats.add(numbers[surplus], lines[surplus])
        repeats.close()


class CutLines(Transform):
    """Cuts the lines that were chosen out of a task's documents."""

    name = "duplicate_lines"
    Settings = DuplicateLines.Settings

    def __init__(self, work: Path, settings: DuplicateLines.Settings):
        super().__init__(settings)
        self.folder = work

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        """Yield the documents with what is left of them."""
        self._number = number_of(rank, 0) - 1
        self._repeats = self._surplus(rank)
        self._following = next(self._repeats, None)
        yield from super().run(data, rank, world_size)

    def change(self, document: Document) -> str | None:
        """A reason where too little is left."""
        self._number += 1
        surplus = set()
        while self._following and self._following[0] == self._number:
            surplus.add(self._following[1])
            self._following = next(self._repeats, None)
        if not surplus:
            return None
        lines = split(document.text, self.settings.unit)
        between = "\n" if self.settings.unit == "line" else "\n\n"
        document.text = between.join(line for i, line in enumerate(lines) if i not in surplus)
        self.count(f"{self.settings.unit}s cut", len(surplus))
        return (
            "duplicate_lines.nothing_left"
            if len(document.text.strip()) < self.settings.min_characters
            else None
        )

    def _surplus(self, rank: int) -> Iterator[tuple[int, int]]:
        runs = [Run(path) for path in run_paths(self.folder / "repeats")]
        end = number_of(rank, documents_in(self.folder / "catalog", rank))
        for rows in ranges(runs, number_of(rank, 0), end, columns=2):
            yield from zip(*rows.tolist(), strict=True)


def split(text: str, unit: Literal["line", "paragraph"]) -> list[str]:
    """The lines of a text, or its paragraphs."""
    return text.split("\n") if unit == "line" else _GAP.split(text)
