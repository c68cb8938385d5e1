"""What one forward pass knows besides its activations: positions and documents."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from megalm.parallel.context import ContextShare


@dataclass
class ForwardState:
    """Travels through Megatron-Core's layers in the argument `packed_seq_params`, which no layer of ours unpacks.

    positions_BS: absolute position of each token, (B or 1, S); None means 0 ... S-1 in every row.
    segments_BS: number of the document each token of the whole sequence belongs to; attention stays inside it. None: one
    document.
    context: this rank's share of the sequences, where context parallelism splits them.
    causal: a token sees itself and those before it; otherwise all of its document (an encoder).
    head: what a decoder's last stage makes of (itself, its last hidden states) in place of logits or loss; they are of shape
    (S, B, H), under sequence parallelism this rank's part of it.
    layer_outputs: by number (from 0) the layers whose outputs, shaped like these, are wanted; a decoder puts in those of its
    own layers.
    """

    positions_BS: Tensor | None = None
    segments_BS: Tensor | None = None
    context: ContextShare | None = None
    causal: bool = True
    head: Callable[[Any, Tensor], Tensor] | None = None
    layer_outputs: dict[int, Tensor | None] = field(default_factory=dict)
    memo: dict[Any, Any] = field(default_factory=dict)

    # what Megatron-Core's attention reads of a PackedSeqParams: "not the packed layout"
    qkv_format: ClassVar[str] = "bshd"
    cp_group: ClassVar[None] = None

    def mask(self, queries: int, keys: int, device: torch.device) -> Tensor | None:
        """Boolean mask (B or 1, 1, queries, keys), true where a query may look; None means plain causal attention.

        The queries are the last tokens of the keys, and these the first of the sequence.
        """
        if self.segments_BS is None and self.causal:
            return None
        if ("mask", keys) not in self.memo:
            self.memo["mask", keys] = self._build_mask(queries, keys, device)
        return self.memo["mask", keys]

    def _build_mask(self, queries: int, keys: int, device: torch.device) -> Tensor:
        if self.segments_BS is None:
            return torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device)
        segments_BK = self.segments_BS[:, :keys]
        same_document = segments_BK[:, -queries:, None] == segments_BK[:, None, :]
        if not self.causal:
            return same_document[:, None]
        order = torch.arange(keys, device=device)
        return (same_document & (order[None, :] <= order[-queries:, None]))[:, None]
