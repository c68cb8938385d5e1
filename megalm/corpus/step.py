"""The base classes of all steps of a recipe: they count what comes in, what goes out and why documents are removed."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from pydantic import Field

from megalm.config.section import Section
from megalm.corpus.shards import Removals
from megalm.corpus.tally import Tally
from megalm.executors.stage import Stage

SettingsClass = type[Section]
GROUPS_IN, GROUPS_REMOVED = "groups.in", "groups.removed"
"""Tables of documents by group, as they came into a step and as it removed them."""


class ForLanguages(Section):
    """The option of steps that may be meant for some languages alone; options of such a step derive from it."""

    languages: list[str] | None = Field(
        None,
        description="Apply to documents in these languages alone, as the step `language` found them or their source "
        "says (codes such as en); others pass. By default to all. A recipe may name the step once a language, with "
        "other options.",
    )


class Step(PipelineStep, ABC):
    """A step of a recipe: `name` is its key there, `Settings` its options.

    A subclass says in `apply` what becomes of a document. What must not travel to the worker processes with the step
    (models, word lists) is made in `start`.
    """

    type = "corpus"
    name: str = ""
    Settings: ClassVar[SettingsClass] = Section
    settings: Any
    needs_text: ClassVar[bool] = False
    """Whether raw pages must be extracted before; those with the option `languages` need not say so."""

    def __init__(self, settings: Section | None = None):
        super().__init__()
        self.settings = self.Settings() if settings is None else settings
        self.tally = Tally(self.name)
        self.removals: Removals | None = None
        self.groups: Callable[[Document], list[str]] | None = None
        """The groups under which a document is counted, where the recipe wants removals by group."""

    def files(self) -> list[Path]:
        """Files that the step reads (lists, models); a build refuses to go on when one of them has changed."""
        return []

    def verify(self) -> None:
        """Raise UserError for an option or a file that `start` could not use; called before anything is built."""

    def concerns(self, document: Document) -> bool:
        """Whether the document is in one of the languages that the step is for; others are counted."""
        languages = getattr(self.settings, "languages", None)
        if languages is None or document.metadata.get("language") in languages:
            return True
        self.count("in other languages" if "language" in document.metadata else "of no known language")
        return False

    def start(self) -> None:
        """Called in the worker before the first document of a task."""

    @abstractmethod
    def apply(self, document: Document) -> str | None:
        """Keep the document (None) or remove it (the reason, a short key such as "gopher.too_short")."""

    def additions(self, document: Document) -> Iterable[Document]:
        """New documents that follow one that stays; they are counted as `added`."""
        return ()

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        """Yield the documents that stay, and those added, counting all."""
        self.tally = tally = Tally(self.name)
        clock = time.perf_counter
        begin = clock()
        self.start()
        tally.seconds += clock() - begin
        for document in data:
            tally.documents_in += 1
            tally.characters_in += len(document.text)
            groups = self.groups(document) if self.groups else ()  # before `apply`, which may change the text
            begin = clock()
            reason = self.apply(document)
            added = tuple(self.additions(document)) if reason is None else ()  # before later steps change it
            tally.seconds += clock() - begin
            if groups:
                self._count_groups(groups, reason is not None)
            if reason is not None:
                self.removed(document, reason)
                continue
            if added:
                self.count("added", len(added))
            for kept in (document, *added):
                tally.documents_out += 1
                tally.characters_out += len(kept.text)
                yield kept

    def removed(self, document: Document, reason: str) -> None:
        """Count a removed document, perhaps keep it as a sample, and write it out where the recipe says so."""
        self.tally.remove(reason, document.id, document.text, document.metadata)
        if self.removals is not None:
            self.removals.write(document, self.name, reason)

    def _count_groups(self, groups: list[str], removed: bool) -> None:
        self.tally.table(GROUPS_IN).update(groups)
        if removed:
            self.tally.table(GROUPS_REMOVED).update(groups)

    def count(self, name: str, amount: int = 1) -> None:
        """Add to a counter that the report shows, for instance of e-mail addresses masked."""
        self.tally.counters[name] += amount

    def observe(self, name: str, value: float | str) -> None:
        """Add a score or a label of a document to a histogram that the report shows."""
        self.tally.observe(name, value)


class Filter(Step):
    """A step that keeps or removes documents and never changes their text."""

    @abstractmethod
    def check(self, document: Document) -> str | None:
        """None keeps the document, else the reason; scores may be written to `document.metadata`."""

    def apply(self, document: Document) -> str | None:
        """As `check` says, where the document is in one of the step's languages."""
        return self.check(document) if self.concerns(document) else None


class Transform(Step):
    """A step that changes documents in place."""

    @abstractmethod
    def change(self, document: Document) -> str | None:
        """Change the document; a reason removes it."""

    def apply(self, document: Document) -> str | None:
        """As `change` says, where the document is in one of the step's languages."""
        return self.change(document) if self.concerns(document) else None


class Collective(ABC):
    """A step that needs the whole corpus at once, such as removal of near-duplicates.

    The documents reached so far lie as shards in `source`; the stages leave the shards of those that stay in
    `target`, in the form that `megalm.corpus.shards` writes. Steps within the stages that derive from `Step` are
    counted as others are.
    """

    name: str = ""
    Settings: ClassVar[SettingsClass] = Section
    settings: Any

    def __init__(self, settings: Section | None = None):
        self.settings = self.Settings() if settings is None else settings

    def files(self) -> list[Path]:
        """Files that the step reads beside the documents; a build refuses to go on when one of them has changed."""
        return []

    def verify(self) -> None:  # noqa: B027 (most have nothing to check)
        """Raise UserError for an option or a file that cannot be used; called before anything is built."""

    @abstractmethod
    def stages(self, source: Path, work: Path, target: Path, tasks: int) -> list[Stage]:
        """The stages in order; `work` is a directory of their own, `tasks` the number of shards in `source`."""
