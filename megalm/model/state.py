"""What one forward pass knows besides its activations: positions, documents and key/value cache."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from megalm.parallel.context import ContextShare


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

    positions_BS: absolute position of each token, (B or 1, S); None means 0 ... S-1 in every row.
    segments_BS: number of the document each token of the whole sequence belongs to; attention stays inside it. None: one
    document.
    context: this rank's share of the sequences, where context parallelism splits them.
    causal: a token sees itself and those before it; otherwise all of its document (an encoder).
    cache, slots_B, length: key/value cache, the slot of each row, and one more than the largest position.
    head: what a decoder's last stage makes of (itself, its last hidden states) in place of logits or loss; they are of shape
    (S, B, H), under sequence parallelism this rank's part of it.
    layer_outputs: by number (from 0) the layers whose outputs, shaped like these, are wanted; a decoder puts in those of its
    own layers.
    """

    positions_BS: Tensor | None = None
    segments_BS: Tensor | None = None
    context: ContextShare | None = None
    causal: bool = True
    cache: KVCache | None = None
    slots_B: Any = None
    length: int = 0
    head: Callable[[Any, Tensor], Tensor] | None = None
    layer_outputs: dict[int, Tensor | None] = field(default_factory=dict)
    memo: dict[Any, Any] = field(default_factory=dict)

    # what Megatron-Core's attention reads of a PackedSeqParams: "not the packed layout"
    qkv_format: ClassVar[str] = "bshd"
    cp_group: ClassVar[None] = None

    def mask(self, queries: int, keys: int, device: torch.device) -> Tensor | None:
        """Boolean mask (B or 1, 1, queries, keys), true where a query may look; None means plain causal attention.

        Without a cache the queries are the last tokens of the keys, and these the first of the sequence.
        """
        if self.cache is None and self.segments_BS is None and self.causal:
            return None
        if ("mask", keys) not in self.memo:
            self.memo["mask", keys] = self._build_mask(queries, keys, device)
        return self.memo["mask", keys]

    def _build_mask(self, queries: int, keys: int, device: torch.device) -> Tensor:
        if self.cache is not None:
            assert self.positions_BS is not None
            return (torch.arange(keys, device=device) <= self.positions_BS[:, :, None])[:, None]
        if self.segments_BS is None:
            return torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device)
        segments_BK = self.segments_BS[:, :keys]
        same_document = segments_BK[:, -queries:, None] == segments_BK[:, None, :]
        if not self.causal:
            return same_document[:, None]
        order = torch.arange(keys, device=device)
        return (same_document & (order[None, :] <= order[-queries:, None]))[:, None]
