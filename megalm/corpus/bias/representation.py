"""The step `representation`: counts whom a corpus mentions, and beside which occupations and attributes."""

from collections.abc import Iterable
from pathlib import Path

from datatrove.data import Document
from pydantic import Field

from megalm.config.section import Section
from megalm.corpus.bias.scan import scan
from megalm.corpus.bias.terms import axis_of, load_terms
from megalm.corpus.step import Filter, Step
from megalm.corpus.words import split

MENTIONS, DOCUMENTS, SENTENCES = "mentions", "documents", "sentences"
PAIR_SENTENCES, PAIR_DOCUMENTS = "pairs.sentences", "pairs.documents"
BETWEEN = "|"
"""Stands between group and word in the rows of tables of pairs."""


class TermsSettings(Section):
    """The option of all steps that look for terms."""

    terms: Path | None = Field(
        None, description="A file of term lists, laid over those of megalm, which are for English."
    )


class TermsStep(Step):
    """A step with these options, whose `start` reads the lists and checks what else names their labels."""

    settings: TermsSettings

    def files(self) -> list[Path]:
        """The user's term lists."""
        return [self.settings.terms] if self.settings.terms else []

    def verify(self) -> None:
        """What `start` cannot read is told before anything is built."""
        type(self)(self.settings).start()


class Representation(TermsStep, Filter):
    """Keeps every document and counts the terms of groups, occupations, attributes and slurs in it.

    A group and a word are together where one sentence holds both. The tables of the tally hold sums: `mentions`; `documents`,
    `sentences` (how many hold a label, or any of an axis); `pairs.sentences` and `pairs.documents` (rows GROUP|WORD, and
    AXIS|WORD for any group of an axis).
    """

    name = "representation"
    needs_text = True
    Settings = TermsSettings
    settings: TermsSettings

    def start(self) -> None:
        """Read the lists, once a process."""
        self._terms = load_terms(self.settings.terms)
        for name in (MENTIONS, DOCUMENTS, SENTENCES, PAIR_SENTENCES, PAIR_DOCUMENTS):
            self.tally.table(name)

    def check(self, document: Document) -> None:
        """Count; documents in another language than the lists' are passed by, and counted as that."""
        found = scan(document, self._terms)
        if found is None:
            self.count("documents.other_language")
            return
        self.count("documents")
        self.count("words", len(split(document).words))
        self.count("sentences", found.sentences)
        self.tally.table(MENTIONS).update(found.mentions)
        self.tally.table(DOCUMENTS).update(_with_axes(found.mentions))
        pairs: set[str] = set()
        for labels in found.labels_of_sentences(self._terms.groups):
            self.tally.table(SENTENCES).update(_with_axes(labels))
            together = self._pairs(labels)
            self.tally.table(PAIR_SENTENCES).update(together)
            pairs.update(together)
        self.tally.table(PAIR_DOCUMENTS).update(pairs)

    def _pairs(self, labels: set[str]) -> list[str]:
        groups = labels & self._terms.groups
        words = labels - groups
        if not groups or not words:
            return []
        return [f"{group}{BETWEEN}{word}" for group in _with_axes(groups) for word in words]


def _with_axes(labels: Iterable[str]) -> set[str]:
    return {*labels, *map(axis_of, labels)}
