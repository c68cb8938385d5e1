"""Turns texts into sets of hashed word n-grams (shingles), the sets whose Jaccard similarity is meant."""

from typing import NamedTuple

import numpy as np

from megalm.corpus.dedup.hashing import Hashes, Places, Words, mix, powers

_FACTOR = 0xD6E8FEB86659FD93

_INVERSE = pow(_FACTOR, -1, 1 << 64)


class Shingles(NamedTuple):
    """The n-grams of several texts, one after the other, repeated ones included."""

    hashes: Hashes
    offsets: Places
    """N-grams offsets[i] to offsets[i + 1] are those of text i; none for a text without words."""


def sequence_hashes(words: Words) -> Hashes:
    """One hash a text, of its words in order; 0 for a text without words."""
    sums = np.zeros(len(words.borders) - 1, np.uint64)
    filled = np.flatnonzero(np.diff(words.borders) > 0)
    if len(filled):
        starts = words.borders[filled]
        count = len(words.hashes)
        weighted = words.hashes * powers(_FACTOR, count)
        sums[filled] = mix(np.add.reduceat(weighted, starts) * powers(_INVERSE, count)[starts])
    return sums


def ngram_hashes(words: Hashes, n: int) -> Hashes:
    """The hash of every run of `n` words; their order counts."""
    count = max(0, len(words) - n + 1)
    total = np.zeros(count, np.uint64)
    for place in range(n):
        total += words[place : place + count] * np.uint64(pow(_FACTOR, place + 1, 1 << 64))
    return mix(total)


def shingle(words: Words, n: int) -> Shingles:
    """The n-grams of each text; a text of fewer than `n` words has one of all its words."""
    lengths = np.diff(words.borders)
    counts = np.where(lengths >= n, lengths - n + 1, np.minimum(lengths, 1))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    hashes = np.empty(int(offsets[-1]), np.uint64)
    long = lengths >= n
    full = ngram_hashes(words.hashes, n)
    # The n-gram that begins at word i belongs to a text unless the text's end cuts it.
    inside = np.ones(len(full), bool)
    for back in range(1, n):
        ends = words.borders[1:] - back
        inside[ends[(ends >= 0) & (ends < len(full)) & (lengths >= back)]] = False
    hashes[np.repeat(long, counts)] = full[inside]
    for i in np.flatnonzero((lengths > 0) & ~long).tolist():
        own = words.hashes[words.borders[i] : words.borders[i + 1]]
        hashes[offsets[i]] = ngram_hashes(own, len(own))[0]
    return Shingles(hashes, offsets.astype(np.int64))
