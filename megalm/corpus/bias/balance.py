"""The step `representation_balance`: takes away documents about the groups that a corpus speaks of most."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from pydantic import Field, field_validator

from megalm import atomic
from megalm.corpus.bias.filter import check_labels, count_with_axes
from megalm.corpus.bias.representation import TermsSettings
from megalm.corpus.bias.scan import scan
from megalm.corpus.bias.terms import load_terms
from megalm.corpus.shards import ReadShards, WriteShards
from megalm.corpus.step import Collective, Filter, Stage
from megalm.splits import hash64


class BalanceSettings(TermsSettings):
    """Options of the step `representation_balance`."""

    ratio: dict[str, float] = Field(
        min_length=2,
        description="Wanted numbers of documents, one to another, by the group that each mentions most, such as "
        "{gender.female: 1, gender.male: 1}. Groups with more lose documents, until the ratio to the scarcest is met.",
    )
    min_keep: float = Field(
        0.1, ge=0, le=1, description="Least share of a group's documents that stays, whatever the ratio."
    )

    @field_validator("ratio")
    @classmethod
    def _positive(cls, ratio: dict[str, float]) -> dict[str, float]:
        for group, part in ratio.items():
            if not part > 0:
                raise ValueError(f"the part of {group} is {part}; give a number above 0")
        return ratio


class RepresentationBalance(Collective):
    """Takes documents of over-represented groups away, those whose id has the greatest hashes.

    A document counts for that group of `ratio` which it mentions most; those that mention none, or two equally often, stay. Which
    ones go depends on their ids and the corpus alone; numbers are met up to chance, for each document is decided by itself.
    """

    name = "representation_balance"
    Settings = BalanceSettings
    settings: BalanceSettings

    def files(self) -> list[Path]:
        """The user's term lists."""
        return [self.settings.terms] if self.settings.terms else []

    def verify(self) -> None:
        """The term lists must be lists, and have the groups."""
        Leading(self.settings)

    def stages(self, source: Path, work: Path, target: Path, tasks: int) -> list[Stage]:
        """Count in each task, remove."""
        count = CountLeading(self.settings, work / "counts")
        keep = KeepRatio(self.settings, work / "counts")
        return [
            Stage("count", tasks, [ReadShards(source), count]),
            Stage("remove", tasks, [ReadShards(source), keep, WriteShards(target)]),
        ]


class Leading:
    """Says which of some groups a document mentions most."""

    def __init__(self, settings: BalanceSettings):
        self._terms = load_terms(settings.terms)
        check_labels(RepresentationBalance.name, settings.ratio, self._terms)
        self._groups = list(settings.ratio)

    def __call__(self, document: Document) -> str | None:
        """The group; None where the document mentions none, or two equally often."""
        found = scan(document, self._terms)
        if found is None:
            return None
        counts = count_with_axes(found.mentions)
        first, second = sorted(self._groups, key=lambda group: -counts[group])[:2]
        return first if counts[first] > counts[second] else None


class CountLeading(PipelineStep):
    """Leaves how many of a task's documents mention each group most."""

    type = "corpus"
    name = "count groups"

    def __init__(self, settings: BalanceSettings, folder: Path):
        super().__init__()
        self.settings, self.folder = settings, folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        """Count; no documents come out."""
        leading = Leading(self.settings)
        counts = Counter(group for document in data if (group := leading(document)) is not None)
        atomic.write_text(self.folder / f"{rank:05d}.json", json.dumps(counts))
        return iter(())


class KeepRatio(Filter):
    """Removes documents of the groups that have more than their part."""

    name = RepresentationBalance.name
    settings: BalanceSettings

    def __init__(self, settings: BalanceSettings, folder: Path):
        super().__init__(settings)
        self.folder = folder

    def start(self) -> None:
        """Add the counts of all tasks up."""
        self._leading = Leading(self.settings)
        counts: Counter[str] = Counter()
        for path in self.folder.glob("*.json"):
            counts.update(json.loads(path.read_text(encoding="utf-8")))
        self._keep = kept_shares(counts, self.settings.ratio, self.settings.min_keep)

    def check(self, document: Document) -> str | None:
        """A reason for a share of the documents of an over-represented group."""
        group = self._leading(document)
        if group is None:
            return None
        self.count(f"documents.{group}")
        return f"{self.name}.{group}" if chance(document.id) >= self._keep[group] else None


def kept_shares(counts: dict[str, int], ratio: dict[str, float], min_keep: float) -> dict[str, float]:
    """The share of each group's documents that stays, so that what stays is as `ratio`; groups without documents count not."""
    found = {group: counts.get(group, 0) for group in ratio}
    scale = min((count / ratio[group] for group, count in found.items() if count), default=0)
    return {
        group: max(min_keep, min(1.0, ratio[group] * scale / count)) if count else 1.0
        for group, count in found.items()
    }


def chance(id: str) -> float:
    """A number in [0, 1) that depends on a document's id alone."""
    return hash64(id.encode("utf-8", "replace")) / 2**64
