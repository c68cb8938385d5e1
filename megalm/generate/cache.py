"""Keys and values of the sequences that are open, in slots that share a limit of memory."""

import torch
from torch import Tensor

ROUND = 64
"""Slots are made longer by so many tokens at a time."""


class SlotCache:
    """Slots of equal length, of which the first ones are in use; they grow as sequences ask for it, up to `tokens` in all.

    Each layer's tensor has the shape (slots, length, groups on this rank, 2, head width): keys, then values.
    """

    def __init__(
        self, layers: int, groups: int, width: int, tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """tokens: the limit of slots x length."""
        self.tokens = tokens
        self.slots = self.length = 0
        self.version = 0
        """Grows whenever the layers' tensors are others."""
        empty = torch.empty(0, 0, groups, 2, width, dtype=dtype, device=device)
        self.layers = [empty] * layers

    def fits(self, slots: int, length: int) -> bool:
        """Whether so many slots of such a length keep the limit."""
        return slots * length <= self.tokens

    def reserve(self, slots: int, length: int, used: int) -> None:
        """Make room for `slots` slots of `length` tokens; the first `used` slots keep what they hold.

        There is no more memory at a time than for the limit and one layer. All that is needed has to `fit`.
        """
        assert self.fits(slots, length)
        if slots <= self.slots and length <= self.length:
            return
        # a longer slot may leave room for fewer of them
        new_length = max(length, min(-(-length // ROUND) * ROUND, self.tokens // slots), 1)
        if self.fits(slots, self.length):
            new_length = max(new_length, self.length)
        new_slots = slots
        if slots > self.slots:  # by halves, so that a growing batch does not copy at each sequence
            new_slots = max(slots, min(slots + slots // 2, self.tokens // new_length))
        elif self.fits(self.slots, new_length):
            new_slots = self.slots
        kept = min(self.length, new_length)
        for number, old in enumerate(self.layers):
            new = old.new_zeros(new_slots, new_length, *old.shape[2:])
            new[:used, :kept] = old[:used, :kept]
            self.layers[number] = new
        self.slots, self.length = new_slots, new_length
        self.version += 1

    def clear(self) -> None:
        """Give the memory back; no slot is in use."""
        self.layers = [layer.new_empty(0, 0, *layer.shape[2:]) for layer in self.layers]
        self.slots = self.length = 0
        self.version += 1

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Copy the tokens from `start` to `end` from one slot to another."""
        for layer in self.layers:
            layer[target, start:end] = layer[source, start:end]

    def rearrange(self, sources: list[int], targets: list[int], end: int) -> None:
        """Let each of `targets` hold what the slot at its place in `sources` holds, up to `end`; they may overlap."""
        for layer in self.layers:
            layer[targets, :end] = layer[sources, :end]

    def read(self, slot: int, start: int, end: int) -> Tensor:
        """A copy of some tokens of a slot, (layers, tokens, groups, 2, head width)."""
        return torch.stack([layer[slot, start:end] for layer in self.layers])

    def write(self, slot: int, start: int, block: Tensor) -> None:
        """Put back what `read` gave."""
        for layer, part in zip(self.layers, block, strict=True):
            layer[slot, start : start + len(part)] = part
