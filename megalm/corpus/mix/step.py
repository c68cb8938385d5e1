"""The step `mix` of a recipe: takes so much of each source, shuffles all documents, and splits off those held out."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from megalm import atomic
from megalm.corpus.dedup.runs import RUN_BYTES, load_rows, run_paths, save_rows, slice_rows
from megalm.corpus.dedup.task import Task
from megalm.corpus.mix.plan import MakePlan, Measure, keys_of, read_plan, source_of
from megalm.corpus.mix.settings import Settings as MixSettings
from megalm.corpus.shards import SUFFIX, ReadShards, from_line, to_line
from megalm.corpus.step import Collective, Filter, Stage
from megalm.splits import SPLITS, hash64

_SPLIT_BITS = 2
_ORDER_BITS = 64 - _SPLIT_BITS


class Mix(Collective):
    """Takes documents of each source by weight or budget, and leaves them shuffled, as shards SPLIT-NUMBER.

    Which documents are taken, how often and in which order depends on the seed, their ids and texts; not on how they
    lay in shards. Budgets are kept but for the last document that did not fit.
    """

    name = "mix"
    Settings = MixSettings
    settings: MixSettings

    def files(self) -> list[Path]:
        """The tokenizer's."""
        return [self.settings.tokenizer] if self.settings.tokenizer else []

    def verify(self) -> None:
        """The tokenizer must be one."""
        if self.settings.unit == "tokens":
            from megalm.tokenizer import load_tokenizer

            load_tokenizer(str(self.settings.tokenizer))

    def stages(self, source: Path, work: Path, target: Path, tasks: int) -> list[Stage]:
        """Measure, plan, deal out to sorted runs, and gather the runs' parts into shards."""
        settings = self.settings
        return [
            Stage("measure", tasks, [ReadShards(source), Measure(work, settings)]),
            Stage("plan", 1, [MakePlan(work, settings)]),
            Stage("deal", tasks, [ReadShards(source), Choose(work, settings), Deal(work, settings)]),
            Stage("gather", tasks, [Gather(work, target)]),
        ]


class Choose(Filter):
    """Removes the documents that the plan does not take, and counts how often it takes the others."""

    name = "mix"
    Settings = MixSettings

    def __init__(self, work: Path, settings: MixSettings):
        super().__init__(settings)
        self.folder = work

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        """Yield the documents that are taken."""
        self._plan = read_plan(self.folder)
        yield from super().run(data, rank, world_size)
        if rank == 0:
            for source, plan in self._plan.sources.items():
                self.count(f"{source}: {self.settings.unit} asked for", plan.wanted)
                self.count(f"{source}: {self.settings.unit} taken", plan.planned)

    def check(self, document: Document) -> str | None:
        """A reason for a document that is beyond its source's budget."""
        source = source_of(document, self.settings)
        copies = self._plan.copies(source, keys_of(document, self.settings).choice)
        if self.settings.unit != "documents":  # else `run` counts them
            self.count(f"{source}: documents taken", copies)
        return None if copies else "mix.over_budget"


class Deal(Task):
    """Leaves a task's documents, as often as they are taken, in runs sorted by split and shuffled order."""

    name = "deal"

    def __init__(self, work: Path, settings: MixSettings):
        super().__init__()
        self.folder, self.settings = work, settings

    def work(self, documents: Iterable[Document], rank: int, world_size: int) -> None:
        """Write the runs of task `rank`: lines in one file, rows (order, end of line) in another."""
        plan = read_plan(self.folder)
        held: list[tuple[int, bytes]] = []
        size = number = 0
        for document in documents:
            keys = keys_of(document, self.settings)
            line = to_line(document)
            for copy in range(plan.copies(source_of(document, self.settings), keys.choice)):
                order = hash64(f"{keys.choice}:{copy}".encode()) >> _SPLIT_BITS
                held.append((keys.split << _ORDER_BITS | order, line))
                size += len(line)
            if size >= RUN_BYTES:
                self._write(held, rank, number)
                held, size, number = [], 0, number + 1
        self._write(held, rank, number)

    def _write(self, held: list[tuple[int, bytes]], rank: int, number: int) -> None:
        held.sort()
        name = f"{rank:05d}-{number:05d}"
        with atomic.open_atomic(self.folder / "lines" / f"{name}.jsonl") as file:
            file.writelines(line for _, line in held)
        ends = np.cumsum(np.array([len(line) for _, line in held], np.uint64))
        keys = np.array([key for key, _ in held], np.uint64)
        save_rows(self.folder / "order" / f"{name}.npy", np.stack([keys, ends]))


class Gather(PipelineStep):
    """Writes the shards of a task, each a range of the shuffled order, and yields their documents."""

    type = "corpus"
    name = "gather"

    def __init__(self, work: Path, target: Path):
        super().__init__()
        self.folder, self.target = work, target

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        """Yield the documents in the order in which they are written."""
        shards = [(split, i, n) for split, n in enumerate(read_plan(self.folder).shards) for i in range(n)]
        for split, i, count in shards[rank::world_size]:
            low, high = ((split << _ORDER_BITS) + (k << _ORDER_BITS) // count for k in (i, i + 1))
            path = self.target / f"{SPLITS[split]}-{i:05d}{SUFFIX}"
            with ExitStack() as stack:
                file = stack.enter_context(atomic.open_atomic(path))
                stream = stack.enter_context(zstandard.ZstdCompressor().stream_writer(file, closefd=False))
                for line in self._lines(low, high):
                    stream.write(line)
                    yield from_line(line)

    def _lines(self, low: int, high: int) -> list[bytes]:
        """The lines of a range of the order, sorted."""
        found: list[tuple[int, bytes]] = []
        for path in run_paths(self.folder / "order"):
            rows = load_rows(path)
            first = int(np.searchsorted(rows[0], np.uint64(low)))
            begin = int(rows[1, first - 1]) if first else 0
            with open(self.folder / "lines" / f"{path.stem}.jsonl", "rb") as file:
                file.seek(begin)
                for key, end in zip(*slice_rows(rows, low, high).tolist(), strict=True):
                    found.append((key, file.read(end - begin)))
                    begin = end
        found.sort()
        return [line for _, line in found]
