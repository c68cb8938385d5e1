"""Locality-sensitive hashing: chooses bands and rows for a Jaccard threshold and says what they will find."""

import math
from typing import NamedTuple

from megalm.errors import UserError


class Bands(NamedTuple):
    """`bands` groups of `rows` minimum hashes; two documents are candidates if they agree in all rows of a band."""

    bands: int
    rows: int

    def probability(self, similarity: float) -> float:
        """The S-curve: the probability that two documents of this Jaccard similarity become candidates.

        1 - (1 - s^r)^b (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, section 3.4).
        """
        return -math.expm1(self.bands * math.log1p(-(similarity**self.rows))) if similarity < 1 else 1.0


def choose_bands(threshold: float, recall: float, permutations: int) -> Bands:
    """The steepest S-curve that finds pairs at `threshold` with probability `recall` or more.

    Steepest means the most rows a band, so the fewest candidates below the threshold; then as few bands as do.
    Raises UserError where `permutations` hashes do not suffice.
    """
    for rows in range(permutations, 0, -1):
        bands = math.ceil(math.log1p(-recall) / math.log1p(-(threshold**rows)))
        if bands * rows <= permutations:
            return Bands(bands, rows)
    raise UserError(
        f"{permutations} permutations cannot find pairs of Jaccard similarity {threshold:g} with probability "
        f"{recall:g}; raise `permutations` or lower `recall`"
    )


def describe(choice: Bands, threshold: float) -> str:
    """The choice and points of its S-curve in one line."""
    points = sorted({0.5, 0.6, 0.7, 0.8, 0.9, 0.95, threshold})
    curve = ", ".join(f"{s:g}: {choice.probability(s):.3f}" for s in points)
    return f"{choice.bands} bands of {choice.rows} rows; chance that a pair is found, by similarity: {curve}"
