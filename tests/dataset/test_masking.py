"""Hiding tokens: how many, by what, and whole words."""

import numpy as np

from megalm.dataset.masking import mask_tokens
from megalm.dataset.order import uniform

VOCABULARY, MASK = 1000, 4


def masked_many(count: int, length: int, probability: float, continues_V=None):
    """`count` samples of `length` tokens between two that may not be chosen."""
    random = np.random.default_rng(0)
    may_S = np.ones(length + 2, bool)
    may_S[[0, -1]] = False
    for key in range(count):
        tokens_S = random.integers(5, VOCABULARY, length + 2)
        yield (
            tokens_S,
            may_S,
            mask_tokens(tokens_S, may_S, probability, VOCABULARY, MASK, key, continues_V),
        )


def test_fifteen_in_a_hundred_tokens_are_chosen_of_which_80_10_10_are_hidden_replaced_and_left():
    hidden = replaced = left = 0
    where_S = np.zeros(102)
    for tokens_S, may_S, (seen_S, chosen_S) in masked_many(2000, 100, 0.15):
        assert chosen_S.sum() == 15
        assert not chosen_S[~may_S].any()
        assert (seen_S == tokens_S)[~chosen_S].all()
        hidden += int((seen_S == MASK)[chosen_S].sum())
        left += int((seen_S == tokens_S)[chosen_S].sum())
        replaced += int(((seen_S != tokens_S) & (seen_S != MASK))[chosen_S].sum())
        where_S += chosen_S
    chosen = 2000 * 15
    deviation = 4 * (0.25 / chosen) ** 0.5
    assert abs(hidden / chosen - 0.8) < deviation
    assert abs(replaced / chosen - 0.1) < deviation
    assert abs(left / chosen - 0.1) < deviation
    # every place is chosen as often as any other
    assert abs(where_S[1:-1] / 2000 - 0.15).max() < 5 * (0.15 * 0.85 / 2000) ** 0.5


def test_random_replacements_come_from_the_whole_vocabulary():
    found = []
    for tokens_S, _, (seen_S, chosen_S) in masked_many(2000, 100, 0.15):
        found.append(seen_S[chosen_S & (seen_S != tokens_S) & (seen_S != MASK)])
    ids = np.concatenate(found)
    counts = np.bincount(ids, minlength=VOCABULARY)
    assert counts[VOCABULARY - 10 :].all() and ids.max() < VOCABULARY
    assert counts[5:].max() < 4 * counts[5:].mean() + 10


def test_whole_words_are_chosen_or_left_whole():
    continues_V = np.zeros(VOCABULARY, bool)
    continues_V[600:] = True
    share, partly = [], 0
    for tokens_S, may_S, (_, chosen_S) in masked_many(500, 100, 0.15, continues_V):
        begins_S = (~continues_V[tokens_S]) | ~may_S
        begins_S[1] = True
        word_S = np.cumsum(begins_S)
        for word in np.unique(word_S[may_S]):
            pieces = chosen_S[(word_S == word) & may_S]
            assert pieces.all() or not pieces.any()
            partly += len(pieces) > 1 and pieces.all()
        assert 0 < chosen_S.sum() <= 15
        share.append(chosen_S.sum() / 100)
    assert partly > 1000
    assert 0.145 < np.mean(share) <= 0.15


def test_a_word_larger_than_the_share_is_chosen_where_there_is_no_other():
    continues_V = np.ones(VOCABULARY, bool)
    may_S = np.array([False, True, True, True, True, False])
    _, chosen_S = mask_tokens(np.arange(5, 11), may_S, 0.15, VOCABULARY, MASK, 1, continues_V)
    assert (chosen_S == may_S).all()


def test_a_piece_behind_a_separator_begins_a_word_of_its_own():
    continues_V = np.ones(VOCABULARY, bool)
    may_S = np.array([False, True, False, True, False])
    _, chosen_S = mask_tokens(np.arange(5, 10), may_S, 0.15, VOCABULARY, MASK, 1, continues_V)
    assert chosen_S.sum() == 1


def test_nothing_to_choose_from_leaves_the_sample_alone():
    tokens_S = np.array([2, 3])
    seen_S, chosen_S = mask_tokens(tokens_S, np.zeros(2, bool), 0.15, VOCABULARY, MASK, 1)
    assert (seen_S == tokens_S).all() and not chosen_S.any()


def test_masks_depend_on_the_key_alone():
    tokens_S, may_S = np.arange(5, 105), np.ones(100, bool)
    first = mask_tokens(tokens_S, may_S, 0.15, VOCABULARY, MASK, 7)
    again = mask_tokens(tokens_S, may_S, 0.15, VOCABULARY, MASK, 7)
    other = mask_tokens(tokens_S, may_S, 0.15, VOCABULARY, MASK, 8)
    assert (first.tokens_S == again.tokens_S).all() and (first.chosen_S == again.chosen_S).all()
    assert (first.chosen_S != other.chosen_S).any()


def test_uniform_numbers_are_uniform_and_independent_of_neighbouring_keys():
    table = np.stack([uniform(200, key) for key in range(200)])
    assert 0 <= table.min() and table.max() < 1
    counts, _ = np.histogram(table, bins=20, range=(0, 1))
    expected = table.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 50  # 19 degrees of freedom: chance of 1e-4
    assert np.abs(np.corrcoef(table) - np.eye(200)).max() < 0.35
