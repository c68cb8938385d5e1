"""Hashes the words of many texts at once with numpy: case, punctuation and layout make no difference to a word."""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from datatrove.data import Document
from numpy.typing import NDArray

from megalm.splits import hash64

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

PIECE_CHARACTERS = 1 << 20
"""Longer texts are hashed piece by piece; a word cut by a border counts as two."""

_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
_ASSIGNED = (range(0x33480), range(0xE0000, 0xE0200))  # planes 4 to 13 hold no characters
_UNSPACED = (  # scripts written without spaces: each character is a word of its own
    range(0x0E00, 0x0F00),  # Thai, Lao
    range(0x1000, 0x10A0),  # Myanmar
    range(0x1780, 0x1800),  # Khmer
    range(0x3040, 0x3100),  # Hiragana, Katakana
    range(0x3400, 0x4DC0),  # Han
    range(0x4E00, 0xA000),
    range(0xF900, 0xFB00),
    range(0x20000, 0x33480),
)


class Words(NamedTuple):
    """The words of several texts, one after the other."""

    hashes: Hashes
    """Of each word."""
    starts: Places
    """Character of the joined texts at which a word begins."""
    ends: Places
    """Character after its last."""
    borders: Places
    """Words borders[i] to borders[i + 1] are those of text i."""


def hash_words(texts: Sequence[str]) -> Words:
    """Hash every word of `texts` to 64 bits.

    A word is a run of letters, marks and digits, in lower case; in scripts written without spaces, a character.
    `starts` and `ends` count in the texts joined by one character each; for a single text they are its own.

    A word's hash is a polynomial over random values of its characters modulo 2^64, then mixed, so that all words of
    all texts cost a few passes over arrays instead of a loop over words.
    """
    codes = np.frombuffer("\n".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    begins = np.cumsum([0] + [len(text) + 1 for text in texts])
    hashes, starts, ends = [np.empty(0, np.uint64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for begin, end in pairwise(_piece_borders(begins)):
        own, first, last = _hash_piece(codes[begin:end])
        hashes.append(own)
        starts.append(first + begin)
        ends.append(last + begin)
    joined = np.concatenate(starts)
    borders = np.searchsorted(joined, begins).astype(np.int64)
    return Words(np.concatenate(hashes), joined, np.concatenate(ends), borders)


def _piece_borders(begins: Places) -> list[int]:
    """Where joined texts are cut: between texts, and within one only where it alone is longer than a piece."""
    borders = [0]
    while borders[-1] < begins[-1]:
        reach = borders[-1] + PIECE_CHARACTERS
        last = int(begins[np.searchsorted(begins, reach, "right") - 1])
        borders.append(last if last > borders[-1] else reach)
    return borders


def mix(values: Hashes) -> Hashes:
    """Spread every bit of each value over all 64 (the finaliser of SplitMix64, Steele et al. 2014)."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def powers(base: int, count: int) -> Hashes:
    """`base` to the powers 0 to `count` - 1, modulo 2^64."""
    return _all_powers(base, 1 << max(10, (count - 1).bit_length()))[:count]


@lru_cache(maxsize=16)
def _all_powers(base: int, count: int) -> Hashes:
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)


def _hash_piece(codes: NDArray[np.uint32]) -> tuple[Hashes, Places, Places]:
    """Hashes, starts and ends of the words among code points."""
    values = _character_values()[codes]
    inside = values != 0
    alone = (values & np.uint64(1)).astype(bool)
    border = np.empty(len(codes) + 1, bool)  # a word may begin or end before character i
    border[0] = border[-1] = True
    np.not_equal(inside[1:], inside[:-1], out=border[1:-1])
    border[1:-1] |= alone[1:] | alone[:-1]
    starts = np.flatnonzero(border[:-1] & inside)
    ends = np.flatnonzero(border[1:] & inside) + 1
    if not len(starts):
        return np.empty(0, np.uint64), starts, ends
    weighted = values * powers(_BASE, len(codes))
    sums = np.add.reduceat(weighted, starts)  # what lies between words adds zero
    return mix(sums * powers(_INVERSE, len(codes))[starts]), starts, ends


@lru_cache(maxsize=1)
def _character_values() -> Hashes:
    """A random value for each code point: 0 outside words, odd where a character is a word of its own."""
    words = np.zeros(0x110000, bool)
    lower = np.arange(0x110000, dtype=np.uint64)
    for assigned in _ASSIGNED:
        for code in assigned:
            character = chr(code)
            words[code] = unicodedata.category(character)[0] in "LMN"
            small = character.lower()
            if len(small) == 1:
                lower[code] = ord(small)
    values = mix((lower + np.uint64(1)) * np.uint64(_BASE)) & ~np.uint64(1)
    for unspaced in _UNSPACED:
        values[unspaced.start : unspaced.stop] |= np.uint64(1)
    return np.where(words, values, np.uint64(0))


def hash_text(text: str) -> int:
    """A 64-bit hash of a text, which may hold halves of surrogate pairs."""
    return hash64(text.encode("utf-8", "surrogatepass"))


def in_batches(documents: Iterable[Document], characters: int = PIECE_CHARACTERS) -> Iterator[list[Document]]:
    """Yield lists of documents that hold about `characters` characters together."""
    batch: list[Document] = []
    held = 0
    for document in documents:
        batch.append(document)
        held += len(document.text) + 1
        if held >= characters:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch
