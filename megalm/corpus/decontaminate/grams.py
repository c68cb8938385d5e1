"""The n-grams of benchmarks as sorted arrays, and which of them a text holds where."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megalm.corpus.decontaminate.benchmarks import Item
from megalm.corpus.dedup.hashing import PIECE_CHARACTERS, Hashes, Places, hash_words
from megalm.corpus.dedup.shingles import ngram_hashes, shingle

_FILTER_FACTOR = 16
"""Slots of the coarse filter for each n-gram: so few grams of other texts get past it."""


class Match(NamedTuple):
    """An n-gram of an item in a text: the item's number, and the words [begin, end) of the text."""

    item: int
    begin: int
    end: int


class GramTable:
    """Hashes with a number beside each, several under one hash allowed."""

    def __init__(self, hashes: Hashes, numbers: NDArray[np.int64]):
        order = np.lexsort((numbers, hashes))
        self._hashes, self._numbers = hashes[order], numbers[order]
        bits = max(10, (len(hashes) * _FILTER_FACTOR).bit_length())
        self._shift = np.uint64(64 - bits)
        self._coarse = np.zeros(1 << bits, bool)
        self._coarse[(hashes >> self._shift).astype(np.int64)] = True

    def find(self, grams: Hashes) -> list[tuple[int, int]]:
        """Pairs (place in `grams`, number beside an equal hash)."""
        places = np.flatnonzero(self._coarse[(grams >> self._shift).astype(np.int64)])
        if not len(places):
            return []
        first = np.searchsorted(self._hashes, grams[places], "left").tolist()
        last = np.searchsorted(self._hashes, grams[places], "right").tolist()
        return [
            (place, number)
            for place, begin, end in zip(places.tolist(), first, last, strict=True)
            for number in self._numbers[begin:end].tolist()
        ]


class BenchmarkGrams:
    """What is looked for in documents.

    Of a text of at least `n` words every `n`-gram; of one that is shorter, but has `shortest` words, the whole. Left out are
    shorter ones, and n-grams of more than `max_items` items, which are phrases of a template.
    """

    def __init__(self, items: Iterable[Item], n: int, shortest: int, max_items: int):
        self.n, self.shortest = n, min(shortest, n)
        self.labels: list[str] = []
        self._wholes: list[tuple[int, Hashes]] = []
        texts: list[str] = []
        owners: list[int] = []
        for item in items:
            texts += item.texts
            owners += [len(self.labels)] * len(item.texts)
            self.labels.append(item.label)
        parts = [self._grams_of(texts[i:j], np.array(owners[i:j], np.int64)) for i, j in _batches(texts)]
        hashes, numbers = _without_templates(
            _joined([grams for grams, _ in parts]),
            np.concatenate([np.empty(0, np.int64), *(numbers for _, numbers in parts)]),
            max_items,
        )
        searched = set(numbers.tolist()) | {number for number, _ in self._wholes}
        self.not_searched = len(self.labels) - len(searched)
        """Items of which nothing is looked for: too short, or all of it in a template."""
        self.counts = np.bincount(numbers, minlength=len(self.labels))
        self._long = GramTable(hashes, numbers)
        heads = [ngram_hashes(text[: self.shortest], self.shortest) for _, text in self._wholes]
        self._short = GramTable(_joined(heads), np.arange(len(heads)))

    def _grams_of(self, texts: list[str], owners: Places) -> tuple[Hashes, Places]:
        """The n-grams of long texts with their items' numbers; short texts go to the wholes."""
        words = hash_words(texts)
        lengths = np.diff(words.borders)
        for i in np.flatnonzero((lengths >= self.shortest) & (lengths < self.n)).tolist():
            whole = words.hashes[words.borders[i] : words.borders[i + 1]]
            self._wholes.append((int(owners[i]), whole))
        shingles = shingle(words, self.n)
        counts = np.diff(shingles.offsets)
        long = lengths >= self.n
        return shingles.hashes[np.repeat(long, counts)], np.repeat(owners[long], counts[long])

    def matches(self, words: Hashes) -> list[Match]:
        """The n-grams and short texts of items among the words of a document."""
        found = [Match(item, i, i + self.n) for i, item in self._long.find(ngram_hashes(words, self.n))]
        for i, number in self._short.find(ngram_hashes(words, self.shortest)):
            item, text = self._wholes[number]
            if np.array_equal(words[i : i + len(text)], text):
                found.append(Match(item, i, i + len(text)))
        return found


def _without_templates(hashes: Hashes, numbers: Places, max_items: int) -> tuple[Hashes, Places]:
    """Distinct pairs (n-gram, item) of n-grams that at most `max_items` items have."""
    order = np.lexsort((numbers, hashes))
    hashes, numbers = hashes[order], numbers[order]
    fresh = np.ones(len(hashes), bool)
    fresh[1:] = (hashes[1:] != hashes[:-1]) | (numbers[1:] != numbers[:-1])
    hashes, numbers = hashes[fresh], numbers[fresh]
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    rare = counts[inverse] <= max_items
    return hashes[rare], numbers[rare]


def _batches(texts: list[str]) -> Iterator[tuple[int, int]]:
    """Ranges of texts of about `PIECE_CHARACTERS` together."""
    begin = size = 0
    for i, text in enumerate(texts):
        size += len(text)
        if size >= PIECE_CHARACTERS:
            yield begin, i + 1
            begin, size = i + 1, 0
    yield begin, len(texts)


def _joined(parts: list[Hashes]) -> Hashes:
    return np.concatenate([np.empty(0, np.uint64), *parts])


def spans(
    matches: list[Match], starts: Places, ends: Places, margin: int, length: int
) -> list[tuple[int, int]]:
    """The characters [begin, end) of the matches with `margin` around, those that touch joined; `length` is the text's."""
    merged: list[tuple[int, int]] = []
    for match in sorted(matches, key=lambda match: match.begin):
        begin = max(0, int(starts[match.begin]) - margin)
        end = min(length, int(ends[match.end - 1]) + margin)
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((begin, end))
    return merged
