"""What one forward pass knows besides its activations: positions, documents and key/value cache."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor


@dataclass
class KVCache:
    """Keys and values of past tokens, one slot a sequence; slots may hold different numbers of tokens.

    Each layer's tensors have shape (slots, heads on this rank, max_length, head width).
    """

    slots: int
    max_length: int
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def layer(self, number: int, key_BNSD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the layer's (keys, values), allocated at first use like `key_BNSD`."""
        if number not in self.layers:
            shape = (self.slots, key_BNSD.shape[1], self.max_length, key_BNSD.shape[3])
            self.layers[number] = (key_BNSD.new_zeros(shape), key_BNSD.new_zeros(shape))
        return self.layers[number]

    def update(
        self, number: int, key_BNSD: Tensor, value_BNSD: Tensor, state: "ForwardState"
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values at (slot, position) and return all up to the longest position in use."""
        keys, values = self.layer(number, key_BNSD)
        slots_B1 = state.slots_B[:, None]
        keys[slots_B1, :, state.positions_BS] = key_BNSD.transpose(1, 2)
        values[slots_B1, :, state.positions_BS] = value_BNSD.transpose(1, 2)
        return keys[state.slots_B, :, : state.length], values[state.slots_B, :, : state.length]


@dataclass
class ForwardState:
    """Travels through Megatron-Core's layers in the argument `packed_seq_params`, which no layer of ours unpacks.

    positions_BS: absolute position of each token; None means 0 ... S-1 in every row.
    segments_BS: number of the document each token belongs to; attention stays inside it. None: one document.
    cache, slots_B, length: key/value cache, the slot of each row, and one more than the largest position.
    """

    positions_BS: Tensor | None = None
    segments_BS: Tensor | None = None
    cache: KVCache | None = None
    slots_B: Any = None
    length: int = 0
    memo: dict[str, Any] = field(default_factory=dict)

    # what Megatron-Core's attention reads of a PackedSeqParams: "not the packed layout"
    qkv_format: ClassVar[str] = "bshd"
    cp_group: ClassVar[None] = None

    def mask(self, query_length: int, device: torch.device) -> Tensor | None:
        """Boolean mask (B or 1, 1, S, K), true where a query may look; None means plain causal attention."""
        if self.cache is None and self.segments_BS is None:
            return None
        if "mask" not in self.memo:
            self.memo["mask"] = self._build_mask(query_length, device)
        return self.memo["mask"]

    def _build_mask(self, query_length: int, device: torch.device) -> Tensor:
        if self.cache is not None:
            assert self.positions_BS is not None
            return (torch.arange(self.length, device=device) <= self.positions_BS[:, :, None])[:, None]
        assert self.segments_BS is not None
        order = torch.arange(query_length, device=device)
        same_document = self.segments_BS[:, :, None] == self.segments_BS[:, None, :]
        return (same_document & (order[None, :] <= order[:, None]))[:, None]
