"""Substrings that a unigram model begins with, against counting all of them."""

from collections import Counter, defaultdict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from megalm.tokenizer.training.seeds import frequent_substrings


def by_the_book(words: dict[str, int], longest: int) -> dict[str, int]:
    totals: Counter[str] = Counter()
    followers: dict[str, Counter[str]] = defaultdict(Counter)
    for word, count in words.items():
        for begin in range(len(word)):
            for end in range(begin + 2, min(len(word), begin + longest) + 1):
                totals[word[begin:end]] += count
                if end < len(word):
                    followers[word[begin:end]][word[end]] += count
    return {
        text: count
        for text, count in totals.items()
        if count > 1 and max(followers[text].values(), default=0) < count
    }


WORDS = st.dictionaries(st.text("ab東😀", min_size=1, max_size=9), st.integers(1, 5), min_size=1, max_size=12)


@settings(max_examples=200)
@given(WORDS, st.integers(2, 6))
def test_substrings_and_their_frequencies_are_those_of_the_book(words, longest):
    counts = np.array([*words.values()], np.int64)
    found = list(frequent_substrings([*words], counts, longest, 10**6))
    assert dict(found) == by_the_book(words, longest)
    scores = [len(text) * count for text, count in found]
    assert scores == sorted(scores, reverse=True)
    assert list(frequent_substrings([*words], counts, longest, 2)) == found[:2]


def test_counts_beyond_32_bits():
    big = np.array([1 << 40, 1 << 40], np.int64)
    assert dict(frequent_substrings(["ab", "abc"], big, 16, 10)) == {
        "ab": 1 << 41,
        "abc": 1 << 40,
        "bc": 1 << 40,
    }
