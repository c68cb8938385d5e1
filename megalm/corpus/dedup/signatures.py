"""The keys under which documents meet: of their whole text (exact), or of each band of their MinHash signature."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from megalm.corpus.dedup.hashing import Hashes, hash_text, hash_words, mix
from megalm.corpus.dedup.lsh import Bands
from megalm.corpus.dedup.shingles import sequence_hashes, shingle

_PRIME = 0x9FB21C651E98DF25
_PROBE = " ".join(f"Wörter{i}, 日本" for i in range(20))


class KeyMaker(Protocol):
    """Turns texts into the keys under which copies meet; travels to worker processes."""

    def keys(self, texts: Sequence[str]) -> tuple[Hashes, NDArray[np.bool_]]:
        """Keys of shape (texts, keys per text), and which of the texts have any."""

    def fingerprint(self) -> str:
        """Differs wherever the keys of some text would."""


class ExactKeys:
    """One key a text: the hash of its words in order (`normalize`), or of its characters as they are."""

    def __init__(self, normalize: bool):
        self.normalize = normalize

    def keys(self, texts: Sequence[str]) -> tuple[Hashes, NDArray[np.bool_]]:
        """One key of each text; one without words (or, verbatim, without characters) has none."""
        if self.normalize:
            words = hash_words(texts)
            return sequence_hashes(words).reshape(-1, 1), np.diff(words.borders) > 0
        hashes = np.array([hash_text(text) for text in texts], np.uint64)
        return hashes.reshape(-1, 1), np.array([bool(text) for text in texts], bool)

    def fingerprint(self) -> str:
        """Of the normalisation."""
        return f"exact-{'words' if self.normalize else 'verbatim'}-{self.keys([_PROBE])[0][0, 0]:016x}"


class MinHashKeys:
    """A key for each band of the MinHash signature (Broder 1997) of a text's word n-grams.

    Each hash of the signature is the minimum of x -> (a x mod 2^32) xor b over the n-grams' hashes x, for random odd a
    and random b: a permutation of the 32-bit numbers. Libraries that derive many permutations from one are faster for
    one long signature, but their minima are drawn without replacement, and the S-curve does not hold for short texts.
    """

    def __init__(self, ngram: int, bands: Bands, seed: int):
        self.ngram = ngram
        self.bands = bands
        self.seed = seed

    def keys(self, texts: Sequence[str]) -> tuple[Hashes, NDArray[np.bool_]]:
        """A key for each band of each text; a text without words has none."""
        shingles = shingle(hash_words(texts), self.ngram)
        return self.band_keys(shingles.hashes, shingles.offsets), np.diff(shingles.offsets) > 0

    def band_keys(self, hashes: Hashes, offsets: NDArray[np.int64]) -> Hashes:
        """The keys of sets of hashes, shape (sets, bands)."""
        filled = np.flatnonzero(np.diff(offsets) > 0)
        keys = np.zeros((len(offsets) - 1, self.bands.bands), np.uint64)
        if not len(filled):
            return keys
        values, starts = (hashes >> np.uint64(32)).astype(np.uint32), offsets[filled]
        factors, masks = _permutations(self.bands.bands * self.bands.rows, self.seed)
        for band in range(self.bands.bands):
            key = np.full(len(filled), band + 1, np.uint64)
            for i in range(band * self.bands.rows, (band + 1) * self.bands.rows):
                permuted = values * factors[i]
                permuted ^= masks[i]
                key = mix(key * np.uint64(_PRIME) + np.minimum.reduceat(permuted, starts))
            keys[filled, band] = key
        return keys

    def fingerprint(self) -> str:
        """Of n-grams, bands, seed and the algorithms below: keys of a fixed text stand for them."""
        digest = np.bitwise_xor.reduce(self.keys([_PROBE])[0][0])
        return f"minhash-{self.ngram}-{self.bands.bands}x{self.bands.rows}-{self.seed}-{digest:016x}"


def _permutations(count: int, seed: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Odd factors and masks, the same in every release of numpy."""
    random = mix(np.arange(1, 2 * count + 1, dtype=np.uint64) + mix(np.array([seed], np.uint64)))
    high = (random >> np.uint64(32)).astype(np.uint32)
    return high[:count] | np.uint32(1), high[count:]
