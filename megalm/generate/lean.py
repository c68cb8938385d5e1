"""The layers of a model as decoding computes them: over the model's own weights, without graph and without its modules' overhead.

Tokens of all sequences lie in one row (T): first one of each sequence that grows, then parts of prompts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.transformer.identity_op import IdentityOp
from torch import Tensor, nn

from megalm.generate.products import product
from megalm.model.activation import FusedMLP
from megalm.model.attention_kernels import causal_mask, torch_attention
from megalm.model.gpt import GPT
from megalm.model.linear import ColumnLinear, RowLinear
from megalm.model.norm import Norm
from megalm.model.positions import alibi_bias

Function: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PromptPart:
    """Tokens of a prompt in a pass: `count` of them from number `first` of the pass on, from position `start` on in `slot`."""

    slot: int
    first: int
    start: int
    count: int


@dataclass
class Pass:
    """What one pass computes.

    tokens_T, positions_T: of all tokens. grown: of how many the first tokens are, one each of the slots 0, 1, ...
    length: the longest of these sequences, this token included. uneven: whether they differ in length. parts: the prompts
    behind them. cells_T: number of each token's cell, slot x length of the cache + position.
    """

    tokens_T: Tensor
    positions_T: Tensor
    grown: int
    length: int
    uneven: bool
    parts: list[PromptPart]
    cells_T: Tensor
    memo: dict[str, Any] = field(default_factory=dict)

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """Minus infinity on keys that the growing sequences do not see, (grown, 1, 1, length); None where they see all."""
        if not self.uneven:
            return None
        if "mask" not in self.memo:
            order = torch.arange(self.length, device=self.positions_T.device)
            ahead = order > self.positions_T[: self.grown, None]
            bias = torch.zeros(ahead.shape, dtype=dtype, device=ahead.device).masked_fill_(ahead, -torch.inf)
            self.memo["mask"] = bias[:, None, None]
        return self.memo["mask"]


def linear(layer: nn.Module) -> Function:
    """x W' + b of (T, inputs), over the tensor-parallel ranks, with what an adapter adds."""
    if not isinstance(layer, ColumnLinear | RowLinear):  # Transformer Engine's
        return lambda x: _with_bias(*layer(x))
    weight, bias, adapter = layer.weight, layer.bias, layer.lora
    multiply: Callable[[Tensor, Tensor | None], Tensor]
    if layer.quantized is not None:
        multiply = _quantized(layer.quantized)
    else:
        multiply = lambda x, bias: product(x, weight, bias)  # noqa: E731
    if isinstance(layer, RowLinear) and layer.tp_group.size() > 1:
        group, whole = layer.tp_group, multiply

        def multiply(x: Tensor, bias: Tensor | None) -> Tensor:
            partial = whole(x, None)
            dist.all_reduce(partial, group=group)
            return _with_bias(partial, bias)

    if adapter is not None:
        return lambda x: multiply(x, bias) + adapter(x)
    return lambda x: multiply(x, bias)


def _quantized(weight: nn.Module) -> Callable[[Tensor, Tensor | None], Tensor]:
    return lambda x, bias: _with_bias(weight(x), bias)


def _with_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias


def norm(layer: nn.Module) -> Function:
    """Over the last axis."""
    if not isinstance(layer, Norm):
        return layer
    function, weight, bias, eps = layer.function, layer.weight, layer.bias, layer.eps
    return lambda x: function(x, weight, bias, eps)


def mlp(layer: nn.Module) -> Function:
    """Of (T, H), a layer of experts included."""
    if not isinstance(layer, FusedMLP):
        return lambda x: _with_bias(*layer(x[:, None])).squeeze(1)
    inner, outer, activate = linear(layer.linear_fc1), linear(layer.linear_fc2), layer.activate
    return lambda x: outer(activate(inner(x)))


class Attention:
    """Attention of the new tokens to the cache's; they are put into it."""

    def __init__(self, layer: Any, device: torch.device) -> None:
        core = layer.core_attention
        self.qkv, self.proj = linear(layer.linear_qkv), linear(layer.linear_proj)
        self.groups = layer.num_query_groups_per_partition
        self.width = layer.hidden_size_per_attention_head
        self.shared = layer.num_attention_heads_per_partition // self.groups
        self.q_norm, self.k_norm = (
            None if norm_ is None or isinstance(norm_, IdentityOp) else norm(norm_)
            for norm_ in (layer.q_layernorm, layer.k_layernorm)
        )
        self.frequencies: Tensor | None = None
        if core.rotary is not None:
            self.frequencies = core.rotary.frequencies.to(device)
        self.slopes_N: Tensor | None = None
        if core.slopes_N is not None:
            self.slopes_N = core.slopes_N.to(device)

    def __call__(self, x_TH: Tensor, pass_: Pass, cache: Tensor) -> Tensor:
        """cache: (slots, length, groups, 2, width), the keys before the values; it takes the new tokens' in."""
        shared = self.shared
        # of each group its queries, then its key and its value
        qkv_TGRD = self.qkv(x_TH).view(len(x_TH), self.groups, shared + 2, self.width)
        if self.q_norm is not None:
            assert self.k_norm is not None
            qkv_TGRD[:, :, :shared] = self.q_norm(qkv_TGRD[:, :, :shared])
            qkv_TGRD[:, :, shared] = self.k_norm(qkv_TGRD[:, :, shared])
        if self.frequencies is not None:
            self._turn(qkv_TGRD[:, :, : shared + 1], pass_)
        cache.view(-1, self.groups, 2, self.width).index_copy_(0, pass_.cells_T, qkv_TGRD[:, :, shared:])
        if not pass_.parts:
            return self.proj(self._grow(qkv_TGRD[:, :, :shared], pass_, cache))
        outputs = [self._grow(qkv_TGRD[: pass_.grown, :, :shared], pass_, cache)] if pass_.grown else []
        outputs += [self._read(qkv_TGRD[:, :, :shared], part, cache) for part in pass_.parts]
        return self.proj(torch.cat(outputs) if len(outputs) > 1 else outputs[0])

    def _turn(self, x_TGRD: Tensor, pass_: Pass) -> None:
        """Turn queries and keys in place (see `positions.Rotary`)."""
        if "rotary" not in pass_.memo:
            assert self.frequencies is not None
            angles = pass_.positions_T[:, None].double() * self.frequencies
            cosine, sine = angles.cos(), angles.sin()
            pass_.memo["rotary"] = [
                torch.cat(both, -1).to(x_TGRD.dtype)[:, None, None]
                for both in ((cosine, cosine), (-sine, sine))
            ]
        cosine, sine = pass_.memo["rotary"]
        swapped = x_TGRD.roll(self.width // 2, -1)
        x_TGRD.mul_(cosine).addcmul_(swapped, sine)

    def _grow(self, query_BGRD: Tensor, pass_: Pass, cache: Tensor) -> Tensor:
        """One query a sequence: heads that share keys stand where positions stand otherwise."""
        key, value = cache[: pass_.grown, : pass_.length].permute(3, 0, 2, 1, 4)
        mask = pass_.mask(query_BGRD.dtype)
        if self.slopes_N is not None:
            mask = self._alibi(pass_, key)
        output = F.scaled_dot_product_attention(query_BGRD, key, value, attn_mask=mask)
        return output.reshape(pass_.grown, -1)

    def _read(self, query_TGRD: Tensor, part: PromptPart, cache: Tensor) -> Tensor:
        """A part of a prompt: causal attention to itself and to what was before."""
        query = query_TGRD[part.first : part.first + part.count].permute(1, 2, 0, 3).flatten(0, 1)[None]
        end = part.start + part.count
        key, value = cache[part.slot : part.slot + 1, :end].permute(3, 0, 2, 1, 4)
        mask = None
        if self.slopes_N is not None:
            slopes_N = self.slopes_N.to(_wide(query.dtype))
            behind = causal_mask(part.count, end, query.device)
            mask = alibi_bias(slopes_N, part.count, end).masked_fill(~behind, -torch.inf).to(query.dtype)
        output = torch_attention(query, key, value, mask, 0.0)
        return output[0].transpose(0, 1).reshape(part.count, -1)

    def _alibi(self, pass_: Pass, key: Tensor) -> Tensor:
        """Bias (grown, groups, shared, length), minus infinity where a query may not look."""
        if "alibi" not in pass_.memo:
            assert self.slopes_N is not None
            order = torch.arange(pass_.length, device=key.device)
            distance = (order - pass_.positions_T[: pass_.grown, None])[:, None, None]
            slopes = self.slopes_N.to(_wide(key.dtype)).view(1, self.groups, self.shared, 1)
            pass_.memo["alibi"] = (slopes * distance).masked_fill(distance > 0, -torch.inf).to(key.dtype)
        return pass_.memo["alibi"]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class Layer:
    """A transformer layer with norms before attention and MLP, as Megatron-Core's TransformerLayer."""

    def __init__(self, layer: Any, device: torch.device) -> None:
        self.attention_norm = norm(layer.input_layernorm)
        self.attention = Attention(layer.self_attention, device)
        self.mlp_norm, self.mlp = norm(layer.pre_mlp_layernorm), mlp(layer.mlp)

    def __call__(self, x_TH: Tensor, pass_: Pass, cache: Tensor) -> Tensor:
        """Map hidden states to hidden states, both (T, H)."""
        x_TH = x_TH + self.attention(self.attention_norm(x_TH), pass_, cache)
        return x_TH + self.mlp(self.mlp_norm(x_TH))


class Chunk:
    """A stage of the model, or a part of one."""

    def __init__(self, chunk: GPT, device: torch.device) -> None:
        self.chunk = chunk
        self.layers = [Layer(layer, device) for layer in chunk.decoder.layers]
        self.first, self.last = chunk.pre_process, chunk.post_process
        self.norm = norm(chunk.decoder.final_layernorm) if self.last else None

    def embed(self, pass_: Pass) -> Tensor:
        """(T, H) of the pass's tokens."""
        return self.chunk.embedding(pass_.tokens_T[None], pass_.positions_T[None])[:, 0]

    def logits(self, x_TH: Tensor) -> Tensor:
        """This rank's part of the vocabulary, (T, V / TP), padding included."""
        assert self.norm is not None
        return product(self.norm(x_TH), self.chunk.output_weight())
