"""Core attention: softmax(QK')V with rotary or ALiBi positions and document masks."""

import functools
import math
from typing import Any

import torch
from megatron.core import tensor_parallel
from torch import Tensor, nn

from megalm.model.attention_kernels import ATTENTIONS, BY_DOCUMENT, causal_mask
from megalm.model.attention_packages import Documents
from megalm.model.context_attention import attend_over_context
from megalm.model.positions import Rotary, alibi_bias, alibi_slopes
from megalm.model.state import ForwardState


class CoreAttention(nn.Module):
    """Attention over the heads of one tensor-parallel rank; built by Megatron-Core from our spec."""

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
    ) -> None:
        super().__init__()
        self.function = ATTENTIONS[config.model.attention]
        self.by_document = config.model.attention in BY_DOCUMENT
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.sequence_parallel = config.sequence_parallel
        self.shares_context = config.context_parallel_size > 1
        model = config.model
        self.rotary = Rotary(model) if model.position_embedding == "rope" else None
        self.slopes_N = None
        if model.position_embedding == "alibi":
            local = model.num_attention_heads // pg_collection.tp.size()
            start = pg_collection.tp.rank() * local
            self.slopes_N = alibi_slopes(model.num_attention_heads)[start : start + local]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: ForwardState | None = None,
    ) -> Tensor:
        """Map (S, B, heads, width) queries, keys and values to (S, B, heads x width)."""
        state = packed_seq_params or ForwardState()
        if self.rotary is not None:
            query, key = self.rotary.turn(query, key, state)
        attend = functools.partial(self._attend, state)
        assert self.shares_context == (state.context is not None), "tokens of another layout"
        if state.context is not None:
            output_BNSD = attend_over_context(attend, query, key, value, state.context)
        else:
            query_BNSD, key_BNSD, value_BNSD = (x.permute(1, 2, 0, 3) for x in (query, key, value))
            output_BNSD = attend(query_BNSD, key_BNSD, value_BNSD)
        return output_BNSD.permute(2, 0, 1, 3).flatten(2)

    def _mask(self, state: ForwardState, query_BNSD: Tensor, key_BNSD: Tensor) -> Tensor | Documents | None:
        if self.by_document and state.segments_BS is not None and state.causal and state.context is None:
            if "documents" not in state.memo:
                state.memo["documents"] = Documents.of(state.segments_BS)
            return state.memo["documents"]
        queries, keys = query_BNSD.shape[2], key_BNSD.shape[2]
        mask = state.mask(queries, keys, query_BNSD.device)
        if self.slopes_N is None:
            return mask
        if ("alibi", keys) not in state.memo:
            wide = torch.float64 if query_BNSD.dtype == torch.float64 else torch.float32
            slopes_N = self.slopes_N.to(query_BNSD.device, wide)
            bias = alibi_bias(slopes_N, queries, keys).to(query_BNSD.dtype)
            if mask is None:
                mask = causal_mask(queries, keys, query_BNSD.device)
            state.memo["alibi", keys] = bias.masked_fill(~mask, -math.inf)
        return state.memo["alibi", keys]

    def _attend(self, state: ForwardState, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mask = self._mask(state, query, key)
        if not (self.training and self.dropout):
            return self.function(query, key, value, mask, 0.0)
        if self.sequence_parallel:  # the library has forked the generator around all layers already
            return self.function(query, key, value, mask, self.dropout)
        # every tensor-parallel rank drops other weights of its own heads
        with tensor_parallel.get_cuda_rng_tracker().fork():
            return self.function(query, key, value, mask, self.dropout)
