"""How often each source of a blend comes: by weights for ever, or by exact numbers of samples.

Sample numbers are cut into blocks of 4096. Shares say how many samples each source gives in every block; which sample of
the block is whose is left to `order.locate`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from megalm.errors import UserError

BLOCK = 4096

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Budget:
    """What a run takes of one source: so many tokens of it, each once, or so many passes over it."""

    tokens: int | None = None
    epochs: float | None = None


Share = float | Budget
"""Of one source: its weight, relative to the others, or its budget."""


class Shares(Protocol):
    """Which blocks there are, and what each source gives in them; equal ones are interchangeable."""

    def __hash__(self) -> int: ...

    def block_of(self, samples_B: Int64) -> Int64:
        """Return the numbers of the blocks that hold `samples_B`."""

    def bounds(self, block: int) -> tuple[int, int]:
        """Return the first sample of a block and the one after its last."""

    def before(self, block: int) -> Int64:
        """Return how many samples each source gives in all blocks before `block`."""


@dataclass(frozen=True)
class Quotas:
    """The same whole number of samples of each source in every block."""

    quotas: tuple[int, ...]

    def block_of(self, samples_B: Int64) -> Int64:
        """See Shares."""
        return samples_B // BLOCK

    def bounds(self, block: int) -> tuple[int, int]:
        """See Shares."""
        return block * BLOCK, (block + 1) * BLOCK

    def before(self, block: int) -> Int64:
        """See Shares."""
        return np.array([block * quota for quota in self.quotas], np.int64)


@dataclass(frozen=True)
class Counts:
    """So many samples of each source in all, spread evenly; when they are used up, as many again.

    A source's part in the first n samples is within a few samples of n times its share, and exact at the end. For that,
    the sources are the leaves of a binary tree: of the first m samples of a node, floor(m x left / (left + right)) are
    the left child's. That never falls as m rises, takes a step an inner node and no memory.
    """

    counts: tuple[int, ...]

    @property
    def total(self) -> int:
        """Samples until the counts are used up."""
        return sum(self.counts)

    def block_of(self, samples_B: Int64) -> Int64:
        """See Shares; each turn begins with a block of its own."""
        if self.total > np.iinfo(np.int64).max:
            return samples_B // BLOCK
        turn_B, rest_B = np.divmod(samples_B, self.total)
        return turn_B * self._blocks_a_turn() + rest_B // BLOCK

    def bounds(self, block: int) -> tuple[int, int]:
        """See Shares."""
        turn, rest = divmod(block, self._blocks_a_turn())
        start = turn * self.total
        return start + rest * BLOCK, start + min((rest + 1) * BLOCK, self.total)

    def before(self, block: int) -> Int64:
        """See Shares."""
        turn, rest = divmod(block, self._blocks_a_turn())
        taken = _spread(self.counts, rest * BLOCK)
        return np.array(
            [turn * count + part for count, part in zip(self.counts, taken, strict=True)], np.int64
        )

    def _blocks_a_turn(self) -> int:
        return -(-self.total // BLOCK)


def by_weight(weights: Sequence[float]) -> Quotas | Counts:
    """Return shares as near to the weights as can be.

    Where each source has at least a sample in a block of 4096, blocks are all alike (largest remainder); with smaller
    weights they are not, and the shares are exact in the long run. Raises UserError for a weight that is not positive and
    finite.
    """
    shares = np.asarray(weights, np.float64)
    if not (np.isfinite(shares).all() and (shares > 0).all()):
        raise UserError(f"data weights are {list(weights)}; each must be a finite number above 0")
    exact = shares / shares.sum() * BLOCK
    quotas = np.floor(exact).astype(np.int64)
    quotas[np.argsort(quotas - exact, kind="stable")[: BLOCK - quotas.sum()]] += 1
    if (quotas > 0).all():
        return Quotas(tuple(quotas.tolist()))
    fractions = [Fraction(weight) for weight in shares.tolist()]
    unit = math.lcm(*(fraction.denominator for fraction in fractions))
    return Counts(tuple(int(fraction * unit) for fraction in fractions))


def by_budget(budgets: Sequence[Budget], windows: Sequence[int], tokens: int, names: Sequence[str]) -> Counts:
    """Return the exact numbers of samples that the budgets come to.

    windows: samples in one pass over each source. tokens: in a sample. names: of the sources, for messages. Raises
    UserError for a budget of tokens that the source does not have, or one of less than a sample.
    """
    counts = []
    for budget, available, name in zip(budgets, windows, names, strict=True):
        if budget.tokens is not None:
            count = budget.tokens // tokens
            if count > available:
                raise UserError(
                    f"{name} has {available * tokens:,} tokens in whole samples, the budget is {budget.tokens:,}: lower "
                    f"tokens, or write epochs: {budget.tokens / (available * tokens):.4g} to read it more than once"
                )
        else:
            assert budget.epochs is not None
            count = round(Fraction(budget.epochs) * available)
        if count < 1:
            raise UserError(
                f"the budget of {name} is less than one sample of {tokens:,} tokens: raise it or leave the source out"
            )
        counts.append(count)
    return Counts(tuple(counts))


def _spread(counts: tuple[int, ...], taken: int) -> tuple[int, ...]:
    """Return how many of the first `taken` samples are each source's."""
    if len(counts) == 1:
        return (taken,)
    middle = len(counts) // 2
    left = taken * sum(counts[:middle]) // sum(counts)
    return *_spread(counts[:middle], left), *_spread(counts[middle:], taken - left)
