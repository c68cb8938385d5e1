"""Gopher's rules on quality and repetition: each at its published threshold, and off."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalm.corpus.clean.gopher_quality import GopherQuality
from megalm.corpus.clean.gopher_repetition import (
    GopherRepetition,
    covered_characters,
    duplicate_characters,
    longer,
    top_ngram_characters,
)
from megalm.corpus.words import Split
from tests.corpus.documents import prose, reason_of

PROSE = prose(1)


def lines(count: int, make: str) -> str:
    """Lines of different words after a format such as "- {}"."""
    return "\n".join(make.format(line) for line in prose(2, count, 1).split("\n"))


def test_prose_passes_all_rules():
    assert reason_of(GopherQuality(), PROSE) is None
    assert reason_of(GopherRepetition(), PROSE) is None


@pytest.mark.parametrize(
    ("text", "reason", "off"),
    [
        ("the and of river " * 12 + "x", "too_short", {"min_words": None}),
        ("the and " * 50_001, "too_long", {"max_words": None}),
        ("of to be " * 20, "short_words", {"min_mean_word_length": None}),
        (
            "the and extraordinarily incomprehensible " * 20 + "a" * 200,
            "long_words",
            {"max_mean_word_length": None},
        ),
        (PROSE + " #" * 90, "hashes", {"max_symbol_ratio": None, "min_alphabetic_words": None}),
        (PROSE + " word…" * 90, "ellipses", {"max_symbol_ratio": None, "min_alphabetic_words": None}),
        (lines(20, "• {}"), "bullet_lines", {"max_bullet_lines": None}),
        (lines(20, "{} and..."), "ellipsis_lines", {"max_ellipsis_lines": None}),
        (PROSE + " 1234" * 150, "few_alphabetic_words", {"min_alphabetic_words": None}),
        ("river mountain garden " * 30, "few_stop_words", {"min_stop_words": None}),
    ],
)
def test_quality_rules(text: str, reason: str, off: dict[str, object]):
    assert reason_of(GopherQuality(), text) == f"gopher_quality.{reason}"
    assert reason_of(GopherQuality(GopherQuality.Settings(**off)), text) is None


def test_quality_thresholds_are_the_published_ones():
    rule = GopherQuality(GopherQuality.Settings(min_stop_words=None))
    assert reason_of(rule, "river " * 50) is None
    assert reason_of(rule, "river " * 49) == "gopher_quality.too_short"
    words = ["river"] * 80
    assert reason_of(rule, " ".join([*words, *["12"] * 20])) is None
    assert reason_of(rule, " ".join([*words, *["12"] * 21])) == "gopher_quality.few_alphabetic_words"
    assert reason_of(rule, lines(18, "- {}") + "\n" + lines(2, "{}")) is None
    assert reason_of(rule, lines(19, "- {}") + "\n" + lines(1, "{}")) == "gopher_quality.bullet_lines"
    assert reason_of(rule, lines(7, "{}") + "\n" + lines(3, "{}…")) is None
    assert reason_of(rule, lines(6, "{}") + "\n" + lines(4, "{}…")) == "gopher_quality.ellipsis_lines"


def off_but(*kept: str) -> GopherRepetition:
    """The filter with these rules alone."""
    off = {name: None for name in GopherRepetition.Settings.model_fields if name.startswith("max_duplicate")}
    off |= {"max_top_ngram_characters": {}, "max_duplicate_ngram_characters": {}}
    return GopherRepetition(GopherRepetition.Settings(**{k: v for k, v in off.items() if k not in kept}))


@pytest.mark.parametrize(
    ("text", "option", "reason"),
    [
        (PROSE + "\na" * 6, "max_duplicate_lines", "duplicate_lines"),
        ("\n\n".join([*PROSE.split("\n"), *["ab"] * 6]), "max_duplicate_paragraphs", "duplicate_paragraphs"),
        (PROSE + f"\n{prose(9, 4)}" * 4, "max_duplicate_line_characters", "duplicate_line_characters"),
        (
            PROSE + f"\n\n{prose(9, 4)}" * 4,
            "max_duplicate_paragraph_characters",
            "duplicate_paragraph_characters",
        ),
        (PROSE + " very well" * 120, "max_top_ngram_characters", "top_2_gram"),
        (
            " ".join([prose(4, 20), *[prose(5, 9, 99)] * 2]),
            "max_duplicate_ngram_characters",
            "duplicate_5_grams",
        ),
    ],
)
def test_repetition_rules(text: str, option: str, reason: str):
    assert reason_of(off_but(option), text) == f"gopher_repetition.{reason}"
    assert reason_of(off_but(), text) is None


def test_longer_repeated_ngrams_have_lower_thresholds():
    rng = np.random.default_rng(0)
    # 12-word phrases of two words in turn change the words around, so that 10-grams repeat less than 5-grams.
    filler = " ".join(f"w{number}" for number in rng.permutation(5000)[:900])
    phrase = " ".join(f"p{number:03d}" for number in range(100))
    text = f"{filler} {phrase} {phrase}"
    settings = GopherRepetition.Settings(max_duplicate_ngram_characters={10: 0.05, 5: 0.9})
    assert reason_of(GopherRepetition(settings), text) == "gopher_repetition.duplicate_10_grams"
    assert reason_of(GopherRepetition(), text) is None


def top_by_counting(tokens: list[str], n: int) -> int:
    ngrams = Counter(" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
    ngram, count = ngrams.most_common(1)[0]
    return len(ngram) * count


def duplicates_by_counting(tokens: list[str], n: int) -> int:
    seen, total, index = set(), 0, 0
    while index <= len(tokens) - n:
        ngram = tuple(tokens[index : index + n])
        if ngram in seen:
            total += sum(map(len, ngram))
            index += n
        else:
            seen.add(ngram)
            index += 1
    return total


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "dd"]), min_size=11, max_size=60))
def test_ngram_sums_are_those_of_plain_counting(tokens: list[str]):
    parts = Split(" ".join(tokens))
    ngrams = parts.token_ids
    for n in range(2, 11):
        ngrams = longer(ngrams, parts.token_ids[n - 1 :])
        _, first, ngrams, counts = np.unique(
            ngrams, return_index=True, return_inverse=True, return_counts=True
        )
        assert top_ngram_characters(n, first, counts, parts.token_lengths) == top_by_counting(tokens, n)
        exact = duplicate_characters(n, ngrams, parts.token_lengths)
        assert exact == duplicates_by_counting(tokens, n)
        seen_before = np.ones(len(ngrams), bool)
        seen_before[first] = False
        assert covered_characters(n, seen_before, parts.token_lengths) >= exact


@pytest.mark.parametrize("text", ["", " ", "\n\n", "word", "...", "\x00"])
def test_texts_of_nothing_never_raise(text: str):
    assert reason_of(GopherQuality(), text) == "gopher_quality.too_short"
    assert reason_of(GopherQuality(GopherQuality.Settings(min_words=None, min_stop_words=None)), text) in (
        *(None, "gopher_quality.short_words", "gopher_quality.ellipses", "gopher_quality.ellipsis_lines"),
        "gopher_quality.few_alphabetic_words",
    )
    assert reason_of(GopherRepetition(), text) is None
