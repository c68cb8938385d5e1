"""The features: every n-gram hashed to its bucket, counted, weighed; the same for the same words however they are laid out."""

import math
import zlib
from collections import Counter

import numpy as np
import pytest

from megalm.corpus.classify.features import FeatureSettings, count_ngrams, plain_text, weigh
from megalm.corpus.words import Split

BITS64 = (1 << 64) - 1
TEXT = "The cat saw the cat, the CAT saw 15 mice. 猫が見た"


def mixed(value: int) -> int:
    """SplitMix64's finaliser on whole numbers."""
    value ^= value >> 30
    value = value * 0xBF58476D1CE4E5B9 & BITS64
    value ^= value >> 27
    value = value * 0x94D049BB133111EB & BITS64
    return value ^ value >> 31


def bucket(units: list[int], bits: int) -> int:
    factor = 0xD6E8FEB86659FD93
    return (
        mixed(sum(unit * pow(factor, i + 1, 1 << 64) for i, unit in enumerate(units)) & BITS64) >> 64 - bits
    )


def expected(units: list[int], lengths: range, bits: int) -> dict[int, float]:
    grams = [units[i : i + n] for n in lengths for i in range(len(units) - n + 1)]
    counts = Counter(bucket(gram, bits) for gram in grams)
    return {found: 1 + math.log(count) for found, count in counts.items()}


def tokens(text: str) -> list[str]:
    return Split(text).tokens


def test_ngrams_of_words_and_characters_are_counted_in_the_buckets_of_their_hashes():
    settings = FeatureSettings(word_ngrams=3, min_char_ngram=2, max_char_ngram=4, bucket_bits=12)
    counts = count_ngrams(plain_text(tokens(TEXT)), settings)
    words = [zlib.crc32(token.lower().encode()) for token in tokens(TEXT)]
    codes = [ord(character) for character in f" {' '.join(tokens(TEXT)).lower()} "]
    for part, wanted in (
        (slice(None, counts.border), expected(words, range(1, 4), 12)),
        (slice(counts.border, None), expected(codes, range(2, 5), 12)),
    ):
        assert counts.buckets[part].tolist() == sorted(wanted)
        np.testing.assert_allclose(
            counts.values[part], [wanted[b] for b in counts.buckets[part].tolist()], rtol=1e-6
        )
    assert max(counts.values) > 2  # "the" and "cat" come again


def test_case_and_layout_make_no_difference_and_order_does():
    settings = FeatureSettings()
    same = [
        count_ngrams(plain_text(tokens(text)), settings) for text in ("One two\n\n three.", "one TWO three .")
    ]
    assert all(np.array_equal(*pair) for pair in zip(*same, strict=True))
    other = count_ngrams(plain_text(tokens("three two one.")), settings)
    assert set(other.buckets.tolist()) != set(same[0].buckets.tolist())


def test_either_kind_of_ngrams_may_be_left_out():
    words = count_ngrams("a b", FeatureSettings(max_char_ngram=0))
    assert (len(words.buckets), words.border) == (3, 3)
    characters = count_ngrams("a b", FeatureSettings(word_ngrams=0))
    assert (len(characters.buckets), characters.border) == (3 + 2 + 1, 0)
    with pytest.raises(ValueError, match="both are 0"):
        FeatureSettings(word_ngrams=0, max_char_ngram=0)
    with pytest.raises(ValueError, match="less than min_char_ngram, which is 3"):
        FeatureSettings(max_char_ngram=2)


def test_texts_without_words_and_halves_of_surrogates_are_taken():
    assert not len(count_ngrams("", FeatureSettings()).buckets)
    assert len(count_ngrams(plain_text(tokens("ab \ud800 cd")), FeatureSettings()).buckets)


def test_no_more_of_a_text_is_looked_at_than_said():
    settings = FeatureSettings(max_characters=10)
    both = [count_ngrams(text, settings) for text in ("abc def gh", "abc def gh and more")]
    assert all(np.array_equal(*pair) for pair in zip(*both, strict=True))


def test_words_and_characters_are_each_scaled_to_length_one_and_rare_ones_left_out():
    values, rarity = np.float32([1, 2, 1, 1, 3]), np.float32([2, 0, 2, 0, 5])
    weighed = weigh(values, rarity, 3)
    np.testing.assert_allclose(weighed, [0.5**0.5, 0, 0.5**0.5, 0, 1], rtol=1e-6)
    assert weigh(values, np.zeros(5, np.float32), 3).tolist() == [0] * 5
