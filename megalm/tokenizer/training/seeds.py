"""Finds the substrings of counted words that a unigram model begins with (Kudo 2018, section 3.2)."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BOUNDARY = 0


def frequent_substrings(
    words: list[str], counts: NDArray[np.int64], longest: int, number: int
) -> Iterator[tuple[str, int]]:
    """Yield substrings of 2 to `longest` characters with how often each occurs, the `number` best of frequency x length.

    A substring counts as often as its words occur. Those that one character always follows are left out: the longer
    one stands for them. The length grows by one character a round; what occurs once is not followed further.
    """
    text = np.frombuffer("".join(f"{word}\0" for word in words).encode("utf-32-le"), np.uint32).astype(
        np.int64
    )
    ends = np.flatnonzero(text == BOUNDARY)
    weights = np.repeat(counts, np.diff(ends, prepend=-1))
    text = np.append(text, BOUNDARY)
    starts = np.flatnonzero(text != BOUNDARY)
    group = text[starts]  # which substring begins at each of `starts`
    before: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    found: list[tuple[NDArray[np.int64], NDArray[np.int64], int]] = []
    for length in range(2, longest + 2):
        nexts = text[starts + length - 1]
        inside = nexts != BOUNDARY
        starts, group = starts[inside], group[inside]
        keys, first, inverse = np.unique(
            (group << 21) | nexts[inside], return_index=True, return_inverse=True
        )
        totals = np.zeros(len(keys), np.int64)
        np.add.at(totals, inverse, weights[starts])
        if before is not None:
            places, sums = before
            most = np.zeros(len(sums), np.int64)
            np.maximum.at(most, keys >> 21, totals)
            kept = (most < sums) & (sums > 1)
            found.append((places[kept], sums[kept], length - 1))
        before = starts[first], totals
        repeated = totals[inverse] > 1
        starts, group = starts[repeated], inverse[repeated]
        if not len(keys):
            break
    places = np.concatenate([entry[0] for entry in found] or [np.zeros(0, np.int64)])
    sums = np.concatenate([entry[1] for entry in found] or [np.zeros(0, np.int64)])
    lengths = np.concatenate([np.full(len(entry[0]), entry[2]) for entry in found] or [np.zeros(0, np.int64)])
    for i in np.argsort(-sums * lengths, kind="stable")[:number].tolist():
        characters = text[places[i] : places[i] + lengths[i]]
        yield "".join(map(chr, characters.tolist())), int(sums[i])
