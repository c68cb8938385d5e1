"""Remembers keys and values of what prompts began with, so that an equal beginning is not computed again."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from megalm.generate.cache import SlotCache

BLOCK = 32
"""Tokens that are remembered or forgotten together."""


class PrefixCache:
    """Blocks of tokens with their keys and values, known by all tokens up to their end; those used last are kept."""

    def __init__(self, tokens: int) -> None:
        """tokens: how many are kept at most."""
        self.capacity = tokens // BLOCK
        self.hits = self.asked = 0
        """Tokens that were found, of how many."""
        self._blocks: OrderedDict[bytes, Tensor] = OrderedDict()

    def load(self, tokens: Sequence[int], cache: SlotCache, slot: int) -> int:
        """Put the longest known beginning of `tokens` into a slot and return its length; the last token is left to compute."""
        self.asked += len(tokens)
        end, found = 0, []
        for key in _names(tokens[:-1]):
            block = self._blocks.get(key)
            if block is None:
                break
            found.append(key)
            cache.write(slot, end, block)
            end += BLOCK
        self._touch(found)
        self.hits += end
        return end

    def store(self, tokens: Sequence[int], cache: SlotCache, slot: int) -> None:
        """Remember `tokens`, whose keys and values a slot holds."""
        names = list(_names(tokens))[: self.capacity]
        self._touch([key for key in names if key in self._blocks])
        new = [(number, key) for number, key in enumerate(names) if key not in self._blocks]
        while (
            len(self._blocks) + len(new) > self.capacity
        ):  # before they come, for there is no room beside them
            self._blocks.popitem(last=False)
        for number, key in new:
            self._blocks[key] = cache.read(slot, number * BLOCK, (number + 1) * BLOCK)
        self._touch(names)

    def _touch(self, names: Sequence[bytes]) -> None:
        """Used just now, the first last: a block is of no use without those before it."""
        for key in reversed(names):
            self._blocks.move_to_end(key)

    def clear(self) -> None:
        """Forget all, for the weights are others now."""
        self._blocks.clear()


def _names(tokens: Sequence[int]) -> Iterator[bytes]:
    """A digest of all tokens up to each block's end: no two texts share one, whoever wrote them."""
    digest = hashlib.blake2b(digest_size=16)
    for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
        digest.update(np.array(tokens[start : start + BLOCK], np.int64).tobytes())
        yield digest.copy().digest()
