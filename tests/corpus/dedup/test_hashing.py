"""Words are hashed as a plain loop over characters would find them."""

import random
import unicodedata
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalm.corpus.dedup import hashing
from megalm.corpus.dedup.hashing import hash_words
from megalm.corpus.dedup.shingles import sequence_hashes, shingle
from tests.corpus.dedup.texts import random_text

TEXTS = st.lists(st.text(st.sampled_from("aAbßıİ9.,_ \n日本ก้हिé́\ud800"), max_size=30), max_size=5)


def plain_words(text: str) -> Iterator[str]:
    """Words by a loop: what belongs together is what is between characters that are no letters, marks or digits."""
    word = ""
    for character in text:
        if unicodedata.category(character)[0] not in "LMN" or unicodedata.name(character).startswith(
            ("CJK", "THAI")
        ):
            if word:
                yield word
            word = ""
            if unicodedata.category(character)[0] in "LMN":
                yield character
        else:
            small = character.lower()
            word += small if len(small) == 1 else character
    if word:
        yield word


@given(TEXTS)
def test_words_of_texts_are_those_of_a_plain_loop(texts):
    words = hash_words(texts)
    expected = [list(plain_words(text)) for text in texts]
    assert np.diff(words.borders).tolist() == [len(own) for own in expected]
    flat = [word for own in expected for word in own]
    seen = dict(zip(flat, words.hashes.tolist(), strict=True))
    assert [seen[word] for word in flat] == words.hashes.tolist()
    assert len(set(seen.values())) == len(seen)


def test_starts_and_ends_are_places_in_the_text():
    text = "Ein Wörtchen, 日本 und\tएक हिन्दी."
    words = hash_words([text])
    found = [text[a:b] for a, b in zip(words.starts, words.ends, strict=True)]
    assert found == ["Ein", "Wörtchen", "日", "本", "und", "एक", "हिन्दी"]


def test_a_text_longer_than_a_piece_has_the_same_words(monkeypatch):
    text = " ".join(f"word{i}" for i in range(2000))
    whole = hash_words([text])
    monkeypatch.setattr(hashing, "PIECE_CHARACTERS", 1 << 10)
    cut = hash_words([text])
    assert len(cut.hashes) <= len(whole.hashes) + len(text) // 1024
    assert len(set(cut.hashes.tolist()) & set(whole.hashes.tolist())) > 1950
    pieces = [text[a:b] for a, b in zip(cut.starts, cut.ends, strict=True)]
    assert "".join(pieces) == text.replace(" ", "")


@given(TEXTS, st.integers(1, 4))
def test_shingles_are_the_sets_of_word_tuples(texts, n):
    found = shingle(hash_words(texts), n)
    meaning: dict[int, tuple[str, ...]] = {}
    for i, text in enumerate(texts):
        words = list(plain_words(text))
        expected = [tuple(words[k : k + n]) for k in range(len(words) - n + 1)] or [tuple(words)] * bool(
            words
        )
        own = found.hashes[found.offsets[i] : found.offsets[i + 1]].tolist()
        assert len(own) == len(expected)
        for value, gram in zip(own, expected, strict=True):
            assert meaning.setdefault(value, gram) == gram
    assert len(set(meaning.values())) == len(meaning)


@given(TEXTS)
def test_sequences_are_equal_where_words_and_their_order_are(texts):
    hashes = sequence_hashes(hash_words(texts)).tolist()
    words = [tuple(plain_words(text)) for text in texts]
    for i in range(len(texts)):
        for j in range(i):
            assert (hashes[i] == hashes[j]) == (words[i] == words[j])


def test_a_hash_does_not_depend_on_what_stands_around():
    alone = hash_words(["needle"]).hashes[0]
    assert hash_words(["x" * 999 + " needle", "and needle"]).hashes[[1, 3]].tolist() == [alone, alone]


@pytest.mark.parametrize("piece", [1, 7, 50, 64])
def test_words_do_not_depend_on_the_texts_beside(monkeypatch, piece):
    """A batch is cut into pieces; a text that fits into one is never cut, a longer one as if it were alone."""
    monkeypatch.setattr(hashing, "PIECE_CHARACTERS", piece)
    rng = random.Random(0)
    for _ in range(100):
        texts = [random_text(rng, rng.randint(0, 6))[: rng.randint(1, 99)] for _ in range(5)]
        together = hash_words(texts)
        for i, text in enumerate(texts):
            own = together.hashes[together.borders[i] : together.borders[i + 1]]
            assert own.tolist() == hash_words([text]).hashes.tolist()
