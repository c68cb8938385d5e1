"""Finds all words and phrases of lists in one pass over a text (Aho and Corasick 1975, doi:10.1145/360825.360855)."""

import re
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from megalm.moderation.fold import Fold
from megalm.moderation.window import Hit, Scan, Window

# Scripts without spaces between words: Thai, Lao, Burmese, Khmer, kana, Han. Their phrases are found anywhere.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)


class Phrase(NamedTuple):
    """An entry of a list, and what is told where it is found."""

    text: str
    category: str
    mask: str


class _Entry(NamedTuple):
    """A phrase that ends in a state. at_start, at_end: whether a word must begin or end there."""

    length: int
    category: str
    mask: str
    at_start: bool
    at_end: bool


class Phrases:
    """The automaton of a list; it is shared by all texts. Its time is linear in the text, whatever the list."""

    def __init__(self, phrases: Sequence[Phrase], fold: Fold) -> None:
        self.fold = fold
        self.next: list[dict[str, int]] = [{}]
        self.fail, self.depth = [0], [0]
        self.found: list[tuple[_Entry, ...]] = [()]
        self.anywhere: set[str] = set()
        """The first letters of phrases that may begin within a word."""
        for phrase in phrases:
            self._add(phrase)
        self._link()

    def _add(self, phrase: Phrase) -> None:
        text = self.fold.text(phrase.text)
        if not text:
            return
        state = 0
        for one in text:
            if one not in self.next[state]:
                self.next[state][one] = len(self.next)
                self.next.append({})
                self.fail.append(0)
                self.depth.append(self.depth[state] + 1)
                self.found.append(())
            state = self.next[state][one]
        if _UNSPACED.match(text[0]):
            self.anywhere.add(text[0])
        edges = (not _UNSPACED.match(text[0]), not _UNSPACED.match(text[-1]))
        self.found[state] += (_Entry(len(text), phrase.category, phrase.mask, *edges),)

    def _link(self) -> None:
        """Have each state know the longest other one that its text ends with."""
        waiting = deque([0])
        while waiting:
            state = waiting.popleft()
            for one, child in self.next[state].items():
                waiting.append(child)
                other = self.fail[state]
                while other and one not in self.next[other]:
                    other = self.fail[other]
                if state:
                    self.fail[child] = self.next[other].get(one, 0)
                self.found[child] += self.found[self.fail[child]]


class PhraseScan(Scan):
    """Looks for phrases in one text. What may still become one is not settled."""

    def __init__(self, phrases: Phrases) -> None:
        self.phrases = phrases
        self._read = self._state = 0
        self._places: list[tuple[int, bool]] = []
        """Of the folded characters that the state knows: where they come from, and whether a word goes on there."""
        self._in_word = self._after_space = False
        self._ending: list[tuple[_Entry, Hit]] = []
        """Found, if no word goes on behind them."""

    def feed(self, window: Window, final: bool) -> list[Hit]:
        """As `Scan`."""
        hits: list[Hit] = []
        fold, edges, fail, found = (
            self.phrases.fold,
            self.phrases.next,
            self.phrases.fail,
            self.phrases.found,
        )
        state, places, anywhere = self._state, self._places, self.phrases.anywhere
        in_word, after_space = self._in_word, self._after_space
        for place, character in enumerate(window.slice(self._read, window.end), self._read):
            folded, is_word = fold[character]
            inside = in_word and is_word
            if inside and not state and not self._ending and folded[:1] not in anywhere:
                after_space = after_space and not folded
                continue  # most letters: no phrase begins within a word
            for one in folded:
                if self._ending:
                    hits += [hit for entry, hit in self._ending if not (entry.at_end and is_word)]
                    self._ending = []
                if one == " " and after_space:
                    continue
                after_space = one == " "
                while state and one not in edges[state]:
                    state = fail[state]
                state = edges[state].get(one, 0)
                if state:
                    places.append((place, inside))
                    if found[state]:
                        self._ending = self._ended(found[state], place)
                elif places:
                    places.clear()
                inside = is_word
            if folded:
                in_word = is_word
        if final:
            hits += [hit for _, hit in self._ending]
            self._ending = []
        depth = self.phrases.depth[state]
        self._in_word, self._after_space = in_word, after_space
        self._state, self._places = state, places[len(places) - depth :]
        self._read = window.end
        self.settled = self._places[0][0] if depth and not final else self._read
        return hits

    def _ended(self, entries: tuple[_Entry, ...], place: int) -> list[tuple[_Entry, Hit]]:
        ended = []
        for entry in entries:
            begin, inside = self._places[len(self._places) - entry.length]
            if not (entry.at_start and inside):
                ended.append((entry, Hit(begin, place + 1, entry.category, entry.mask)))
        return ended
