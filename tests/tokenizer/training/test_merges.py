"""Merges are those of byte pair encoding done by the book, and of Hugging Face's trainer."""

import json
import random
from collections import Counter

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from megalm.tokenizer.json_pieces import BYTE_CHARACTERS
from megalm.tokenizer.training import merges as module
from megalm.tokenizer.training.merges import BOUNDARY, MergeLearner, cells_of
from tests.tokenizer.training import naive_bpe

LETTERS = "abc"


def learner(counts: dict[str, int], tokens: str = LETTERS, **options) -> MergeLearner:
    cells = [BOUNDARY]
    for word in counts:
        cells += [*map(tokens.index, word), BOUNDARY]
    return MergeLearner(np.array(cells, np.int32), np.array([*counts.values()], np.int64), tokens, **options)


def learned(counts: dict[str, int], merges: int, min_count: int = 1, **options) -> list[tuple[str, str]]:
    ours = learner(counts, **options)
    return [(ours.tokens[m.left], ours.tokens[m.right]) for m in ours.learn(merges, min_count)]


WORDS = st.dictionaries(st.text(LETTERS, min_size=1, max_size=16), st.integers(1, 9), min_size=1, max_size=12)


@settings(max_examples=150)
@given(WORDS, st.integers(1, 25), st.sampled_from(["ids", "bytes"]), st.integers(1, 4))
def test_merges_are_those_of_counting_anew_each_time(counts, merges, ties, min_count):
    words = {tuple(word): count for word, count in counts.items()}
    expected = naive_bpe.learn(words, LETTERS, merges, min_count, ties)
    assert learned(counts, merges, min_count, ties=ties) == expected


@settings(max_examples=50)
@given(WORDS, st.sampled_from(["ids", "bytes"]))
def test_merges_do_not_depend_on_how_many_pairs_are_followed_at_once(counts, ties):
    many = learned(counts, 20, ties=ties)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.MergeLearner, "_wanted", staticmethod(lambda distinct, needed: 1))
        assert learned(counts, 20, ties=ties) == many


def test_runs_of_one_token_merge_from_the_left():
    assert learned({"aaaaaaa": 1}, 3) == [("a", "a"), ("aa", "aa"), ("aa", "a")]
    ours = learner({"aaaaa": 2, "baaa": 1, "aa": 1})
    ours.learn(1)
    # aa aa a, b aa a, aa
    assert [i for i in ours._cells if i >= 0] == [3, 3, 0, 1, 3, 0, 3]


@settings(max_examples=100)
@given(WORDS)
def test_every_merge_gives_a_token_of_its_own(counts):
    ours = learner(counts)
    merges = ours.learn(60)
    assert len(set(ours.tokens)) == len(ours.tokens) == len(LETTERS) + len(merges)


def test_more_tokens_than_room_was_made_for():
    rng = random.Random(5)
    counts = {"".join(rng.choices(LETTERS, k=rng.randint(5, 40))): rng.randint(1, 50) for _ in range(150)}
    words = {tuple(word): count for word, count in counts.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROOM", 2)
        assert learned(counts, 200) == naive_bpe.learn(words, LETTERS, 200)


def test_counts_beyond_32_and_53_bits_are_exact():
    big = (1 << 53) + 1
    # 2^53+1 against 2^53: equal as floating point numbers, and both above 32 bits
    assert learned({"ab": big - 1, "bc": big}, 2) == [("b", "c"), ("a", "b")]
    assert learned({"bc": big - 1, "ab": big}, 2) == [("a", "b"), ("b", "c")]
    assert learned({"ab": 3_000_000_000, "bc": 5}, 1) == [("a", "b")]


def test_no_merge_makes_a_forbidden_token():
    counts = {"abc": 10, "ab": 5}
    pairs = learned(counts, 5, forbidden=["ab"])
    assert ("a", "b") not in pairs and ("b", "c") in pairs and ("a", "bc") in pairs


def test_merging_ends_below_the_least_count():
    counts = {"ab": 5, "bc": 4}
    assert learned(counts, 5, min_count=5) == [("a", "b")]
    assert learned(counts, 5, min_count=6) == []


def test_byte_level_merges_and_ids_equal_hugging_faces():
    rng = random.Random(3)
    syllables = ["".join(rng.choices("bdgklmnprst", k=1)) + rng.choice("aeiouäøи") for _ in range(60)]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(400)]
    texts = [" ".join(rng.choices(words, weights=range(1, 401), k=50)) + ".  \n" for _ in range(100)]
    size = 900
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=sorted(BYTE_CHARACTERS), show_progress=False, special_tokens=["<x>"]
    )
    backend.train_from_iterator(texts, trainer)

    counts = Counter(
        text[begin:end] for text in texts for _, (begin, end) in backend.pre_tokenizer.pre_tokenize_str(text)
    )
    alphabet = ["<x>", *sorted(BYTE_CHARACTERS)]
    ids = np.array([alphabet.index(character) for character in BYTE_CHARACTERS], np.int32)
    ours = MergeLearner(
        cells_of([word.encode() for word in counts], ids), np.array([*counts.values()], np.int64), alphabet
    )
    pairs = [(ours.tokens[m.left], ours.tokens[m.right]) for m in ours.learn(size - len(alphabet))]
    reference = json.loads(backend.to_str())["model"]
    assert {token: number for number, token in enumerate(ours.tokens)} == reference["vocab"]
    assert pairs == [tuple(pair) for pair in reference["merges"]]


def test_progress_counts_the_new_tokens():
    told: list[int] = []
    learner({"abcabc": 2}).learn(3, advance=told.append)
    assert sum(told) == 3
