"""How much of each source is taken: measured first, then planned once for all tasks."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datatrove.data import Document
from pydantic import BaseModel

from megalm import atomic
from megalm.corpus.dedup.hashing import hash_text, in_batches
from megalm.corpus.dedup.runs import TOP, Rows, Run, RunWriter, ranges, run_paths
from megalm.corpus.dedup.task import Task
from megalm.corpus.mix.settings import Settings
from megalm.corpus.shards import to_line
from megalm.errors import UserError
from megalm.splits import SPLITS, hash64, split_limits, split_of

EVERY = "all sources"
"""Stands for the source of every document where no shares are given."""


class SourcePlan(BaseModel):
    """What is taken of one source."""

    documents: int = 0
    available: int = 0
    """Units there are."""
    wanted: int = 0
    """Units asked for."""
    planned: int = 0
    """Units that will be taken: less where `max_repeats` or the size of the last document forbids more."""
    copies: int = 1
    """Every document is taken so often,"""
    limit: int = 0
    """and once more if its key is below this."""


class Plan(BaseModel):
    """What is taken of each source, and into how many shards each split goes."""

    sources: dict[str, SourcePlan]
    shards: list[int]

    def copies(self, source: str, key: int) -> int:
        """How often a document with this key is taken."""
        plan = self.sources[source]
        return plan.copies + (key < plan.limit)


class Keys(NamedTuple):
    """What decides about a document, whatever task sees it."""

    choice: int
    """Small keys are taken first."""
    split: int


def keys_of(document: Document, settings: Settings) -> Keys:
    """By seed, id and text, and for the split by the text alone."""
    choice = hash64(f"{settings.seed}:{hash_text(document.id)}:{hash_text(document.text)}".encode())
    return Keys(choice, split_of(document.text.encode(), split_limits(settings.splits)))


def source_of(document: Document, settings: Settings) -> str:
    """The source whose share counts for a document; raises UserError where none is given."""
    if not settings.sources:
        return EVERY
    source = str(document.metadata.get(settings.source_key))
    if source not in settings.sources:
        raise UserError(
            f"mix: document {document.id} is of source `{source}`, which has no share "
            f"(there are: {', '.join(settings.sources)}); give it one"
        )
    return source


class Measure(Task):
    """Leaves rows (key, units, source) of a task's documents in `work`/sizes, and sums in `work`/sums/RANK.json."""

    name = "measure"

    def __init__(self, work: Path, settings: Settings):
        super().__init__()
        self.folder, self.settings = work, settings

    def work(self, documents: Iterable[Document], rank: int, world_size: int) -> None:
        """Measure each document."""
        settings = self.settings
        names = list(settings.sources) or [EVERY]
        sums = {"documents": [0] * len(names), "units": [0] * len(names)}
        bytes_of = [[0] * len(SPLITS) for _ in names]
        runs = RunWriter(self.folder / "sizes", rank, 3)
        for batch in in_batches(documents):
            rows = np.empty((3, len(batch)), np.uint64)
            for i, (document, units) in enumerate(zip(batch, self._units(batch), strict=True)):
                source, keys = names.index(source_of(document, settings)), keys_of(document, settings)
                rows[:, i] = keys.choice, units, source
                sums["documents"][source] += 1
                sums["units"][source] += units
                bytes_of[source][keys.split] += len(to_line(document))
            runs.add(*rows)
        runs.close()
        text = json.dumps({**sums, "bytes": bytes_of})
        atomic.write_text(self.folder / "sums" / f"{rank:05d}.json", text)

    def _units(self, batch: list[Document]) -> list[int]:
        if self.settings.unit == "documents":
            return [1] * len(batch)
        if self.settings.unit == "characters":
            return [len(document.text) for document in batch]
        from megalm.tokenizer import load_tokenizer

        if not hasattr(self, "_tokenizer"):
            assert self.settings.tokenizer is not None
            self._tokenizer = load_tokenizer(str(self.settings.tokenizer))
        return [len(ids) for ids in self._tokenizer.encode_batch([document.text for document in batch])]


class MakePlan(Task):
    """Leaves the plan of all tasks as `work`/plan.json."""

    name = "plan"

    def __init__(self, work: Path, settings: Settings):
        super().__init__()
        self.folder, self.settings = work, settings

    def work(self, documents: Iterable[Document], rank: int, world_size: int) -> None:
        """Add up what the tasks measured, and plan."""
        paths = sorted((self.folder / "sums").glob("*.json"))
        measured = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        names = list(self.settings.sources) or [EVERY]
        sources = {
            name: SourcePlan(
                documents=sum(part["documents"][i] for part in measured),
                available=sum(part["units"][i] for part in measured),
            )
            for i, name in enumerate(names)
        }
        if self.settings.sources:
            _set_wanted(sources, self.settings)
            self._choose(list(sources.values()))
        else:
            sources[EVERY].planned = sources[EVERY].wanted = sources[EVERY].available
        shards = [
            self._shards(
                [sum(part["bytes"][i][split] for part in measured) for i in range(len(names))], sources
            )
            for split in range(len(SPLITS))
        ]
        atomic.write_text(
            plan_path(self.folder), Plan(sources=sources, shards=shards).model_dump_json(indent=1)
        )

    def _shards(self, sizes: list[int], sources: dict[str, SourcePlan]) -> int:
        """Into how many shards a split goes, from the bytes that each source has in it."""
        repeats = [plan.planned / plan.available if plan.available else 1.0 for plan in sources.values()]
        size = sum(own * often for own, often in zip(sizes, repeats, strict=True))
        return max(bool(sum(sizes)), math.ceil(size / self.settings.shard_bytes))

    def _choose(self, plans: list[SourcePlan]) -> None:
        """Set how often documents are taken: in the order of their keys as many as the rest of the budget allows."""
        rest: list[int | None] = []
        for plan, share in zip(plans, self.settings.sources.values(), strict=True):
            most = min(plan.wanted, int(plan.available * share.max_repeats))
            plan.copies, left = divmod(most, plan.available) if plan.available else (0, 0)
            plan.planned = plan.copies * plan.available
            rest.append(left or None)
        for rows in ranges([Run(path) for path in run_paths(self.folder / "sizes")], 0, TOP, columns=3):
            for i, plan in enumerate(plans):
                if (left_now := rest[i]) is not None:
                    rest[i] = _take(plan, rows[:2, rows[2] == i], left_now)


def _take(plan: SourcePlan, rows: Rows, rest: int) -> int | None:
    """Take documents (key, units) of a source while they fit; return what is left, None once one did not fit."""
    ends = np.cumsum(rows[1].astype(np.int64))
    taken = int(np.searchsorted(ends, rest, "right"))
    if taken:
        plan.limit = int(rows[0, taken - 1]) + 1
        plan.planned += int(ends[taken - 1])
        rest -= int(ends[taken - 1])
    return rest if taken == len(ends) else None


def _set_wanted(sources: dict[str, SourcePlan], settings: Settings) -> None:
    """Turn weights and budgets into units."""
    weighted = {name: share.weight for name, share in settings.sources.items() if share.weight is not None}
    weights = sum(weighted.values())
    total = settings.total
    if total is None and weighted:
        asked = (
            int(sources[name].available * settings.sources[name].max_repeats * weights / weight)
            for name, weight in weighted.items()
            if sources[name].available  # a source that steps have emptied would leave nothing of the others
        )
        total = min(asked, default=0)
    for name, share in settings.sources.items():
        if share.budget is not None:
            sources[name].wanted = share.budget
        elif total is not None:
            sources[name].wanted = round(total * weighted[name] / weights)


def plan_path(work: Path) -> Path:
    """Where the plan lies."""
    return work / "plan.json"


def read_plan(work: Path) -> Plan:
    """The plan that `MakePlan` left."""
    return Plan.model_validate_json(plan_path(work).read_text(encoding="utf-8"))
