"""Turns the tokens of a document into hashed word and character n-grams, the features of the classifiers."""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from megalm.config.section import Section
from megalm.corpus.dedup.hashing import Hashes
from megalm.corpus.dedup.shingles import ngram_hashes


class FeatureSettings(Section):
    """Which n-grams are features, and how many buckets they are hashed to."""

    word_ngrams: int = Field(2, ge=0, le=8, description="Longest n-gram of words; 0 for none.")
    min_char_ngram: int = Field(3, ge=1, le=16, description="Shortest n-gram of characters.")
    max_char_ngram: int = Field(5, ge=0, le=16, description="Longest n-gram of characters; 0 for none.")
    bucket_bits: int = Field(20, ge=8, le=26, description="N-grams are hashed to two to this power buckets.")
    max_characters: int = Field(20_000, ge=1, description="How much of a text is looked at.")

    @model_validator(mode="after")
    def _some(self) -> "FeatureSettings":
        if not self.word_ngrams and not self.max_char_ngram:
            raise ValueError("n-grams of words, of characters or both are needed, and both are 0")
        if self.max_char_ngram and self.max_char_ngram < self.min_char_ngram:
            raise ValueError(f"max_char_ngram is less than min_char_ngram, which is {self.min_char_ngram}")
        return self


class Counts(NamedTuple):
    """The n-grams of one document: those of words, then from `border` on those of characters."""

    buckets: NDArray[np.uint32]
    """Where each n-gram falls; ascending and distinct among words and among characters."""
    values: NDArray[np.float32]
    """1 + ln(how often the bucket is hit)."""
    border: int


def plain_text(tokens: Sequence[str]) -> str:
    """What a classifier sees of a text: its tokens in lower case with single spaces between."""
    return " ".join(tokens).lower()


def count_ngrams(text: str, settings: FeatureSettings) -> Counts:
    """Count the n-grams of a text that `plain_text` made."""
    text = text[: settings.max_characters]
    words = np.fromiter(map(zlib.crc32, text.encode("utf-8", "surrogatepass").split()), np.uint64)
    codes = np.frombuffer(f" {text} ".encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    word_buckets, word_values = _count(words, range(1, settings.word_ngrams + 1), settings.bucket_bits)
    lengths = range(settings.min_char_ngram, settings.max_char_ngram + 1)
    char_buckets, char_values = _count(codes, lengths, settings.bucket_bits)
    buckets = np.concatenate([word_buckets, char_buckets])
    return Counts(buckets, np.concatenate([word_values, char_values]), len(word_buckets))


def weigh(values: NDArray[np.float32], rarity: NDArray[np.float32], border: int) -> NDArray[np.float32]:
    """Multiply counts by the rarity of their n-grams, then scale those of words and those of characters to length 1."""
    weighed = values * rarity
    for part in (weighed[:border], weighed[border:]):
        length = np.sqrt((part * part).sum())
        if length:
            part /= length
    return weighed


def _count(units: Hashes, lengths: range, bits: int) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """The buckets that n-grams of these lengths fall into, and 1 + ln(count) of each."""
    hashes = [ngram_hashes(units, length) >> np.uint64(64 - bits) for length in lengths]
    if not hashes or not sum(map(len, hashes)):
        return np.empty(0, np.uint32), np.empty(0, np.float32)
    buckets = np.concatenate(hashes).astype(np.uint32)
    buckets.sort()
    starts = np.flatnonzero(np.concatenate([[True], buckets[1:] != buckets[:-1]]))
    counts = np.diff(starts, append=len(buckets))
    return buckets[starts], (1 + np.log(counts)).astype(np.float32)
