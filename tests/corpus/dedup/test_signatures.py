"""MinHash keys collide as the S-curve says, and are the same everywhere."""

import math
import random
import subprocess
import sys

import numpy as np
import pytest

from megalm.corpus.dedup.lsh import Bands, choose_bands, describe
from megalm.corpus.dedup.signatures import ExactKeys, MinHashKeys
from megalm.errors import UserError
from tests.corpus.dedup.texts import pair_of_similarity

PAIRS = 6000


@pytest.mark.parametrize("common, different", [(50, 25), (60, 20), (80, 10), (180, 10), (8, 1)])
def test_pairs_of_known_similarity_meet_as_often_as_the_s_curve_says(common, different):
    rng = random.Random(common)
    bands = Bands(14, 8)
    texts = [text for _ in range(PAIRS) for text in pair_of_similarity(rng, common, different)]
    keys, filled = MinHashKeys(1, bands, 0).keys(texts)
    assert filled.all()
    equal = keys[0::2] == keys[1::2]
    expected = bands.probability(common / (common + 2 * different))
    bound = 4 * math.sqrt(expected * (1 - expected) / PAIRS)
    assert abs(equal.any(axis=1).mean() - expected) <= bound
    one = Bands(1, 8).probability(common / (common + 2 * different))
    assert abs(equal.mean() - one) <= 4 * math.sqrt(one * (1 - one) / (PAIRS * bands.bands))


def test_bands_do_not_depend_on_each_other():
    rng = random.Random(0)
    texts = [text for _ in range(PAIRS) for text in pair_of_similarity(rng, 80, 10)]
    keys, _ = MinHashKeys(1, Bands(6, 3), 0).keys(texts)
    agreement = np.corrcoef((keys[0::2] == keys[1::2]).astype(float).T)
    others = agreement[~np.eye(6, dtype=bool)]
    assert abs(others).max() < 4.5 / math.sqrt(PAIRS)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("recall", [0.5, 0.9, 0.99])
def test_chosen_bands_are_the_steepest_that_find_enough(threshold, recall):
    enough = [
        Bands(b, r)
        for r in range(1, 257)
        for b in range(1, 256 // r + 1)
        if 1 - (1 - threshold**r) ** b >= recall
    ]
    best = max(enough, key=lambda choice: (choice.rows, -choice.bands))
    assert choose_bands(threshold, recall, 256) == best


def test_a_recall_that_cannot_be_had_is_a_users_mistake():
    with pytest.raises(UserError, match="raise `permutations`"):
        choose_bands(0.1, 0.99, 16)


def test_description_names_bands_and_points_of_the_curve():
    assert describe(Bands(14, 8), 0.75).startswith("14 bands of 8 rows")
    assert "0.8: 0.924" in describe(Bands(14, 8), 0.75)


def test_keys_are_those_of_every_other_process_and_release():
    """An index made today must be readable tomorrow: these values may not change unnoticed."""
    assert MinHashKeys(5, Bands(14, 8), 0).fingerprint() == "minhash-5-14x8-0-863e04737f446af2"
    assert ExactKeys(True).fingerprint() == "exact-words-479ccdf7a8227ae3"
    code = (
        "from megalm.corpus.dedup.signatures import *; from megalm.corpus.dedup.lsh import Bands;"
        "print(MinHashKeys(5, Bands(14, 8), 0).fingerprint())"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert answers == {"minhash-5-14x8-0-863e04737f446af2\n"}


def test_seeds_and_ngrams_change_the_keys():
    text = ["one two three four five six seven eight nine ten"]
    keys = {MinHashKeys(n, Bands(2, 2), seed).keys(text)[0].tobytes() for n in (2, 3) for seed in (0, 1)}
    assert len(keys) == 4


def test_texts_without_words_have_no_keys():
    for maker in (ExactKeys(True), MinHashKeys(5, Bands(2, 2), 0)):
        assert maker.keys(["", "...", "word"])[1].tolist() == [False, False, True]
    assert ExactKeys(False).keys(["", "...", "word"])[1].tolist() == [False, True, True]
