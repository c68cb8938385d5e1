"""Finds the terms in a document's tokens, once a text, and cuts the tokens into sentences."""

from bisect import bisect_left
from collections import Counter
from functools import cached_property
from pathlib import Path

from datatrove.data import Document

from megalm.corpus.bias.terms import Terms, axis_of, load_terms
from megalm.corpus.words import Split, split

EVERY = "*"
"""Stands for all documents that were looked at, beside the groups."""
LONGEST = 50
"""Tokens after which a sentence is cut: lists and tables without marks are no sentences."""
_ENDS = frozenset(".!?…。！？｡।॥؟۔") | {"..", "...", "...."}
_ABBREVIATIONS = frozenset("mr mrs ms dr prof st sr jr rev gen sen rep gov capt lt col sgt vs etc".split())


class Scan:
    """The terms of one text: `places` are (number of the token, labels), in order."""

    def __init__(self, parts: Split, terms: Terms):
        self.tokens = tokens = parts.tokens
        starts = terms.starts
        lower = list(map(str.lower, tokens))
        if "’" in parts.text:
            lower = [token.replace("’", "'") for token in lower]
        self.places: list[tuple[int, tuple[str, ...]]] = []
        covered = [0] * (len(terms.axes) + 1)
        for place, first in [(place, token) for place, token in enumerate(lower) if token in starts]:
            for axis, rest, capitals, labels in starts[first]:
                end = place + 1 + len(rest)
                if place < covered[axis]:
                    continue  # within a longer term of the same axis
                if rest and tuple(lower[place + 1 : end]) != rest:
                    continue
                if capitals and not all(tokens[place + i][0].isupper() for i in capitals):
                    continue
                covered[axis] = end
                self.places.append((place, labels))

    @cached_property
    def mentions(self) -> Counter[str]:
        """How often each label is found."""
        return Counter(label for _, labels in self.places for label in labels)

    @cached_property
    def _begins(self) -> list[int]:
        """The tokens with which sentences begin."""
        begins: list[int] = []
        begin = 0
        for end, token in enumerate([*self.tokens, "!"]):
            if token in _ENDS and not (
                token == "." and end and self.tokens[end - 1].lower() in _ABBREVIATIONS
            ):
                begins += range(begin, end, LONGEST)
                begin = end + 1
        return begins

    @property
    def sentences(self) -> int:
        """How many sentences the text has; those of more than LONGEST tokens are cut."""
        return len(self._begins)

    def labels_of_sentences(self, groups: frozenset[str]) -> list[set[str]]:
        """The labels in each sentence that holds any.

        Words that name one of `groups` themselves (policeman) are left out, else they would stand beside it each time.
        """
        naming = {place for place, labels in self.places if labels[0] in groups}
        found: dict[int, set[str]] = {}
        for place, labels in self.places:
            if place in naming and labels[0] not in groups:
                continue
            found.setdefault(bisect_left(self._begins, place + 1), set()).update(labels)
        return list(found.values())


_last: tuple[str, Terms | None, Scan] | None = None


def scan(document: Document, terms: Terms) -> Scan | None:
    """The terms in the document's text, kept until another text is asked for; None for another language's document.

    Documents that no step or source has given a language count as being in that of the terms.
    """
    global _last
    if document.metadata.get("language", terms.file.language) != terms.file.language:
        return None
    if _last is None or _last[0] is not document.text or _last[1] is not terms:
        _last = document.text, terms, Scan(split(document), terms)
    return _last[2]


class GroupsOf:
    """The groups that documents mention, by the term lists of a file; these are read in the worker."""

    def __init__(self, path: Path | None):
        self.path = path
        self._terms: Terms | None = None

    def __call__(self, document: Document) -> list[str]:
        """As `groups_of`."""
        if self._terms is None:
            self._terms = load_terms(self.path)
        return groups_of(document, self._terms)


def groups_of(document: Document, terms: Terms) -> list[str]:
    """EVERY, the groups that the document mentions and their axes (gender.female, gender); none without text to look at."""
    if not document.text or (found := scan(document, terms)) is None:
        return []
    groups = terms.groups.intersection(found.mentions)
    return [EVERY, *groups, *set(map(axis_of, groups))]
