"""The two ends of every task's pipeline: reading the sources, and recording what its steps counted."""

import json
import mmap
import os
import re
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from megalm import atomic
from megalm.corpus.bias.scan import GroupsOf
from megalm.corpus.pages import raw_page
from megalm.corpus.plan import read_parts
from megalm.corpus.shards import ReadShards, Removals
from megalm.corpus.sources.base import Part, Source
from megalm.corpus.sources.http import is_url
from megalm.corpus.step import Step
from megalm.corpus.tally import Tally
from megalm.errors import UserError

_COUNT = struct.Struct("<q")
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8}){0,3}")
_EVERY = 16  # documents between two signs of life


class ReadSources(PipelineStep):
    """Reads the parts that the plan in `folder` gave to a task, and tallies each source."""

    type = "corpus"
    name = "read"

    def __init__(self, sources: Sequence[Source], folder: Path):
        super().__init__()
        self.sources = list(sources)
        self.folder = folder
        self.tallies: list[Tally] = []

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        """Yield the documents of this task's parts, in order."""
        self.tallies = [Tally(source.label) for source in self.sources]
        for part in read_parts(self.folder, rank):
            _check_unchanged(part)
            tally = self.tallies[part.source]
            documents = self.sources[part.source].read(part, tally.counters)
            while True:
                begin = time.perf_counter()
                document = next(documents, None)
                tally.seconds += time.perf_counter() - begin
                if document is None:
                    break
                tally.documents_out += 1
                tally.characters_out += len(document.text)
                if raw_page(document) is None:
                    tally.observe("characters", len(document.text))
                yield document


class Ended(NamedTuple):
    """A stage that must be through before another begins: where its tasks leave their counts, and how many they are."""

    counts: Path
    tasks: int

    def check(self) -> None:
        """Raise RuntimeError where tasks are missing: a cluster may start a stage in spite of them."""
        found = len(list(self.counts.glob("*.json")))
        if found != self.tasks:
            raise RuntimeError(
                f"{self.tasks - found} of {self.tasks} tasks of the stage {self.counts.parent.name} are missing; "
                "see its logs, and give the command again"
            )


class TaskBegin(PipelineStep):
    """Starts a task's clock, ahead of its pipeline."""

    type = "corpus"
    name = "task begin"

    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:  # type: ignore[override]
        """Pass on what there is, which is nothing."""
        self.time = time.perf_counter()
        return data


class TaskEnd(PipelineStep):
    """Drives a task's pipeline to its end, then writes what its steps counted as `folder`/RANK.json."""

    type = "corpus"
    name = "task end"

    def __init__(
        self,
        steps: Sequence[PipelineStep],
        folder: Path,
        progress: Path,
        removals: Removals | None,
        before: Ended | None,
        begin: TaskBegin,
        groups: GroupsOf | None = None,
    ):
        super().__init__()
        self.before = before
        self.begin = begin
        self.steps = list(steps)
        self.folder = folder
        self.progress = progress
        self.removals = removals
        for step in self.counting():
            step.removals = removals
            step.groups = groups

    def counting(self) -> list[Step]:
        """The steps that count."""
        return [step for step in self.steps if isinstance(step, Step)]

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        """Let all documents pass, then record the task."""
        if self.before is not None:
            self.before.check()
        kept = Tally("kept")
        if self.removals is None:
            yield from self._watch(data, kept, rank)
        else:
            with self.removals.opened(rank):
                yield from self._watch(data, kept, rank)
        sources = [tally for step in self.steps if isinstance(step, ReadSources) for tally in step.tallies]
        record = {
            "sources": [tally.to_json() for tally in sources],
            "steps": [step.tally.to_json() for step in self.counting()],
            "kept": kept.to_json(),
            "seconds": round(time.perf_counter() - self.begin.time, 3),
        }
        atomic.write_text(self.folder / f"{rank:05d}.json", json.dumps(record))

    def _watch(self, data: Any, kept: Tally, rank: int) -> Iterator[Document]:
        with open(self.progress, "r+b") as file, mmap.mmap(file.fileno(), 0) as counts:
            for number, document in enumerate(data or (), 1):
                kept.documents_out = number
                kept.characters_out += len(document.text)
                kept.observe("characters", len(document.text))
                kept.observe("source", str(document.metadata.get("source", "")))
                if (language := document.metadata.get("language")) is not None:
                    kept.observe("language", _language_label(language))
                kept.sample("kept", document.id, document.text, document.metadata)
                if number % _EVERY == 0:
                    _COUNT.pack_into(counts, rank * _COUNT.size, self._begun())
                yield document
            _COUNT.pack_into(counts, rank * _COUNT.size, self._begun())

    def _begun(self) -> int:
        """How many documents have entered the pipeline."""
        reader = self.steps[0]
        if isinstance(reader, ReadSources):
            return sum(tally.documents_out for tally in reader.tallies)
        return reader.documents if isinstance(reader, ReadShards) else 0


def read_progress(path: Path) -> int:
    """Documents that all tasks of a stage have begun so far."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return 0
    return sum(count for (count,) in _COUNT.iter_unpack(data))


def begin_progress(path: Path, tasks: int) -> None:
    """Make the file of a stage's progress, a number a task; an old one is kept."""
    size = max(1, tasks) * _COUNT.size
    if not path.exists() or path.stat().st_size != size:
        atomic.write_bytes(path, bytes(size))


def _language_label(value: Any) -> str:
    """A language as sources and steps write it; other values, of which there may be any number, have one label."""
    return value if isinstance(value, str) and _LANGUAGE.fullmatch(value) else "(no code)"


def _check_unchanged(part: Part) -> None:
    if is_url(part.file.path):
        return
    try:
        status = os.stat(part.file.path)
    except FileNotFoundError:
        raise UserError(
            f"input {part.file.path} is gone since the build began; build anew with --overwrite"
        ) from None
    if (status.st_size, status.st_mtime_ns) != (part.file.size, part.file.modified_ns):
        raise UserError(
            f"input {part.file.path} has changed since the build began; build anew with --overwrite"
        )
