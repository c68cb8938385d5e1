"""Writes the documents of a finished corpus into a folder for each value of a metadata key, such as the language."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from datatrove.data import Document
from pydantic import Field

from megalm import atomic
from megalm.config.section import Section
from megalm.corpus.dedup.task import Task
from megalm.corpus.shards import ReadShards, open_shard_file, to_line
from megalm.corpus.step import Collective, Stage, Step
from megalm.errors import UserError

OTHER = "other"
MOST_VALUES = 100_000
_LONGEST_NAME = 100


class RouteSettings(Section):
    """Into which folders the documents go."""

    by: str = Field(
        "language",
        description="Metadata key whose values name the folders within OUTPUT/documents; documents without it go "
        "into the folder `other`.",
    )
    folders: list[str] | None = Field(
        None, min_length=1, description="The values that get a folder; by default the commonest ones."
    )
    max_folders: int = Field(
        100, ge=1, le=500, description="Most folders beside `other`, where `folders` names none."
    )


class Route(Collective):
    """The last stages of a recipe with `route`: counts the values of the key, then writes a shard for each folder.

    Within a folder a shard keeps its name and its order of documents. Which values get a folder depends on the
    documents alone; of equally common ones the first by name do.
    """

    name = "route"
    Settings = RouteSettings
    settings: RouteSettings

    def stages(self, source: Path, work: Path, target: Path, tasks: int) -> list[Stage]:
        """Count and choose, where the recipe names no folders, and write."""
        settings, reader = self.settings, ReadShards(source)
        write = Stage("write", tasks, [reader, RouteShards(reader, work, target, settings)])
        if settings.folders:
            return [write]
        return [
            Stage("count", tasks, [ReadShards(source), CountFolders(work, settings.by)]),
            Stage("choose", 1, [ChooseFolders(work, settings.max_folders)]),
            write,
        ]


class CountFolders(Task):
    """Leaves how many of a task's documents each folder would get."""

    name = "count folders"

    def __init__(self, work: Path, by: str):
        super().__init__()
        self.folder, self.by = work / "counts", by

    def work(self, documents: Iterable[Document], rank: int, world_size: int) -> None:
        """Count those of task `rank`."""
        counts: Counter[str] = Counter()
        for document in documents:
            counts[folder_of(document, self.by)] += 1
            if len(counts) > MOST_VALUES:
                raise UserError(
                    f"route.by is `{self.by}`, which has over {MOST_VALUES:,} values; choose a key with few, "
                    "or name the values that get a folder in route.folders"
                )
        atomic.write_text(self.folder / f"{rank:05d}.json", json.dumps(counts))


class ChooseFolders(Task):
    """Leaves the names of the folders that most documents go into."""

    name = "choose folders"

    def __init__(self, work: Path, most: int):
        super().__init__()
        self.folder, self.most = work, most

    def work(self, documents: Iterable[Document], rank: int, world_size: int) -> None:
        """Add up what all tasks counted, and choose."""
        counts: Counter[str] = Counter()
        for path in sorted((self.folder / "counts").glob("*.json")):
            counts.update(json.loads(path.read_text()))
        del counts[OTHER]
        names = sorted(counts, key=lambda name: (-counts[name], name))[: self.most]
        atomic.write_text(_chosen_path(self.folder), json.dumps(names))


class RouteShards(Step):
    """Writes each shard that `reader` reads as one of the same name in each folder that its documents go into."""

    name = "route"
    Settings = RouteSettings
    settings: RouteSettings

    def __init__(self, reader: ReadShards, work: Path, target: Path, settings: RouteSettings):
        super().__init__(settings)
        self.reader, self.folder, self.target = reader, work, target

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        """Yield all documents."""
        named = self.settings.folders
        names = map(folder_name, named) if named else json.loads(_chosen_path(self.folder).read_text())
        self._names = frozenset(names)
        self._shard = ""
        with ExitStack() as self._open:
            yield from super().run(data, rank, world_size)

    def apply(self, document: Document) -> None:
        """Write it into its folder."""
        if self._shard != self.reader.shard:
            self._open.close()
            self._shard = self.reader.shard
            self._streams: dict[str, Any] = {}
        folder = folder_of(document, self.settings.by)
        folder = folder if folder in self._names else OTHER
        if folder not in self._streams:
            shard = open_shard_file(self.target / folder / self._shard)
            self._streams[folder] = self._open.enter_context(shard)
        self._streams[folder].write(to_line(document))
        self.observe("folder", folder)
        self.count(f"{folder}: characters", len(document.text))


def folder_of(document: Document, by: str) -> str:
    """The folder that a document's value of the key `by` names."""
    value = document.metadata.get(by)
    return folder_name(str(value)) if isinstance(value, str | int | float) else OTHER


@lru_cache(4096)
def folder_name(value: str) -> str:
    """A name that any file system takes, made of `value` in lower case; `other` for one that is empty or very long.

    What is no letter, digit or one of `_.-~` is written as in addresses (%2f for a slash), so that no value leads
    out of the folder and different ones stay apart.
    """
    name = quote(value.strip().lower(), safe="", errors="replace").lower()
    if name[:1] in (".", "-", "~"):
        name = f"%{ord(name[0]):02x}{name[1:]}"
    return name if 0 < len(name) <= _LONGEST_NAME else OTHER


def _chosen_path(work: Path) -> Path:
    return work / "folders.json"
