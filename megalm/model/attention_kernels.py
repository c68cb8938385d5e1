"""Ways to compute softmax(QK' / sqrt(D)) V, each under the name that the configuration knows it by."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from megalm.model.attention_packages import Documents, flash_causal, flash_documents, te_causal
from megalm.model.prefix_attention import causal_mask, prefix_attention


def plain_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Scaled dot-product attention by the formula (arXiv:1706.03762, eq. 1); shapes (B, heads, tokens, width).

    `mask` is boolean (true: may look), a float bias, or None for causal attention; there may be more keys than queries, which
    are then the last tokens of the keys.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if mask is None:
        mask = causal_mask(query.shape[2], key.shape[2], query.device)
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return F.dropout(scores.softmax(-1), dropout) @ value


# On CUDA, fastest first; what cannot take a shape or a mask is passed over.
CUDA_BACKENDS = (
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)


def torch_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """The same through torch's fused kernels (on CUDA cuDNN's, then flash attention)."""
    if mask is None and query.shape[2] < key.shape[2]:
        return prefix_attention(query, key, value, dropout)
    grouped = query.shape[1] != key.shape[1]
    on_cuda = query.device.type == "cuda"
    if grouped and mask is not None and on_cuda:
        # the fused CUDA kernels take a mask or grouped heads, not both; the fallback would hold S x S in fp32
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
        grouped = False
    order = sdpa_kernel(list(CUDA_BACKENDS), set_priority=True) if on_cuda else contextlib.nullcontext()
    with order:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, enable_gqa=grouped
        )


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | Documents | None, dropout: float
) -> Tensor:
    """The same through the flash-attn package on CUDA in half precision; with a mask (decoding) it is torch's kernel."""
    if isinstance(mask, Documents):
        return flash_documents(query, key, value, mask, dropout)
    if mask is not None:
        return torch_attention(query, key, value, mask, dropout)
    return flash_causal(query, key, value, dropout)


def te_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """The same through Transformer Engine on CUDA in half precision; with a mask it is torch's kernel."""
    if mask is not None:
        return torch_attention(query, key, value, mask, dropout)
    return te_causal(query, key, value, dropout)


QUERY_BLOCK = 128


class _CausalMatmul(torch.autograd.Function):
    """Causal attention in batched matmuls, a block of queries at a time, so that most of what is masked is never computed.

    The query heads that share a key head are rows of one matmul: shapes are (B x key heads, sharing heads, S, D).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, length, width = query.shape
        groups, keys = key.shape[1:3]
        ctx.before = keys - length
        ctx.scale = 1 / math.sqrt(width)
        query = query.reshape(batch * groups, heads // groups, length, width)
        key, value = (x.reshape(batch * groups, keys, width) for x in (key, value))
        output = torch.empty_like(query)
        kept = []
        for start in range(0, length, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, length)
            seen = ctx.before + stop
            rows = query[:, :, start:stop].flatten(1, 2)
            ahead = ~causal_mask(stop - start, seen, query.device)
            bias = torch.zeros((), dtype=query.dtype, device=query.device).masked_fill(ahead, -math.inf)
            bias = bias.repeat(heads // groups, 1).expand(len(query), -1, -1)
            scores = torch.baddbmm(bias, rows, key[:, :seen].transpose(1, 2), alpha=ctx.scale)
            weights = scores.softmax(-1)
            output[:, :, start:stop] = torch.bmm(weights, value[:, :seen]).view_as(query[:, :, start:stop])
            kept.append(weights)
        ctx.save_for_backward(query, key, value, *kept)
        return output.view(batch, heads, length, width)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        query, key, value, *kept = ctx.saved_tensors
        batch, length, width = gradient.shape[0], query.shape[2], query.shape[3]
        shape = gradient.shape
        gradient = gradient.reshape(query.shape)
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        for number, weights in enumerate(kept):
            start = number * QUERY_BLOCK
            stop = min(start + QUERY_BLOCK, length)
            seen = ctx.before + stop
            rows, grad_rows = (x[:, :, start:stop].flatten(1, 2) for x in (query, gradient))
            grad_value[:, :seen].baddbmm_(weights.transpose(1, 2), grad_rows)
            grad_weights = torch.bmm(grad_rows, value[:, :seen].transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_rows = torch.bmm(grad_scores, key[:, :seen]).mul_(ctx.scale)
            grad_query[:, :, start:stop] = grad_rows.view_as(query[:, :, start:stop])
            grad_key[:, :seen].baddbmm_(grad_scores.transpose(1, 2), rows, alpha=ctx.scale)
        shared = (batch, -1, key.shape[1], width)
        return grad_query.view(shape), grad_key.view(shared), grad_value.view(shared)


def matmul_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """Batched matmuls that keep the weights for the backward pass: faster than torch's kernel for short sequences on a CPU.

    With a mask or dropout it is torch's kernel.
    """
    if mask is not None or dropout:
        return torch_attention(query, key, value, mask, dropout)
    return _CausalMatmul.apply(query, key, value)


def auto_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Torch's kernel, except where `matmul_attention` measured faster (docs/notebook.md)."""
    short = query.device.type == "cpu" and key.shape[2] <= 512
    kernel = matmul_attention if short else torch_attention
    return kernel(query, key, value, mask, dropout)


ATTENTIONS: dict[str, Callable[..., Tensor]] = {
    "auto": auto_attention,
    "torch": torch_attention,
    "flash": flash_attention,
    "te": te_attention,
    "matmul": matmul_attention,
    "plain": plain_attention,
}

# These take `Documents` in place of a mask.
BY_DOCUMENT = ("flash",)
