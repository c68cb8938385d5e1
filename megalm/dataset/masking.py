"""Which tokens of a sample are hidden and by what, as a pure function of the sample and a key."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megalm.dataset.order import derive_key, uniform

MASKED, RANDOM = 0.8, 0.1  # the rest of the chosen tokens stay as they are (arXiv:1810.04805, 3.1)

Int64 = NDArray[np.int64]


class Masked(NamedTuple):
    """The tokens as the model sees them, and which of them it has to predict; shapes (S)."""

    tokens_S: Int64
    chosen_S: NDArray[np.bool_]


def mask_tokens(
    tokens_S: Int64,
    may_S: NDArray[np.bool_],
    probability: float,
    vocab_size: int,
    mask_id: int,
    key: int,
    continues_V: NDArray[np.bool_] | None = None,
) -> Masked:
    """Choose round(probability x tokens that `may_S` allows), one at least, and hide 80% of them behind `mask_id`.

    Another 10% become random ids below `vocab_size`, 10% stay. continues_V: which ids go on with the word before them; with
    it whole words are chosen, in random order, each that still fits (BERT's whole-word masking); a word that alone is
    larger than the share is chosen if nothing else is.
    """
    place_M = np.flatnonzero(may_S)
    chosen_S = np.zeros(len(tokens_S), bool)
    if not len(place_M):
        return Masked(tokens_S.copy(), chosen_S)
    room = max(1, round(probability * len(place_M)))
    if continues_V is None:
        word_M = np.arange(len(place_M))
    else:
        # a piece goes on with a word only where its neighbour may be chosen, too
        goes_on_M = continues_V[tokens_S[place_M]] & (np.diff(place_M, prepend=-2) == 1)
        goes_on_M[0] = False
        word_M = np.cumsum(~goes_on_M) - 1
    taken = _take_words(np.bincount(word_M), room, derive_key("words", key))
    chosen_S[place_M] = np.isin(word_M, taken)

    fate_S = uniform(len(tokens_S), derive_key("fate", key))
    random_S = (uniform(len(tokens_S), derive_key("replacement", key)) * vocab_size).astype(np.int64)
    hidden_S = np.where(fate_S < MASKED, mask_id, np.where(fate_S < MASKED + RANDOM, random_S, tokens_S))
    return Masked(np.where(chosen_S, hidden_S, tokens_S), chosen_S)


def _take_words(size_W: Int64, room: int, key: int) -> list[int]:
    """Words in random order, each that fits into what is left of `room` tokens."""
    order = np.argsort(uniform(len(size_W), key), kind="stable").tolist()
    sizes, taken = size_W.tolist(), []
    for word in order:
        if sizes[word] <= room:
            taken.append(word)
            room -= sizes[word]
        if not room:
            break
    return taken or order[:1]
