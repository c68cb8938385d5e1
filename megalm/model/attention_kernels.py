"""Ways to compute softmax(QK' / sqrt(D)) V, each under the name that the configuration knows it by."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def plain_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Scaled dot-product attention by the formula (arXiv:1706.03762, eq. 1); shapes (B, heads, tokens, width).

    `mask` is boolean (true: may look), a float bias, or None for causal attention.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if mask is None:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return F.dropout(scores.softmax(-1), dropout) @ value


def torch_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """The same through torch's fused kernels (cuDNN or flash attention on CUDA)."""
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, enable_gqa=grouped
    )


class _CausalMatmul(torch.autograd.Function):
    """Causal attention in five batched matmuls; the query heads that share a key head are rows of one matmul."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, length, width = query.shape
        groups = key.shape[1]
        rows = heads // groups * length
        ctx.scale, ctx.shape = 1 / math.sqrt(width), query.shape
        query, key, value = (x.reshape(batch * groups, -1, width) for x in (query, key, value))
        ahead = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
        bias = torch.zeros((), dtype=query.dtype, device=query.device).masked_fill(ahead, -math.inf)
        bias = bias.repeat(heads // groups, 1).expand(batch * groups, rows, length)
        weights = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=ctx.scale).softmax(-1)
        ctx.save_for_backward(query, key, value, weights)
        return torch.bmm(weights, value).view(batch, heads, length, width)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        query, key, value, weights = ctx.saved_tensors
        gradient = gradient.reshape(query.shape)
        grad_value = torch.bmm(weights.transpose(1, 2), gradient)
        grad_weights = torch.bmm(gradient, value.transpose(1, 2))
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        grad_query = torch.bmm(grad_scores, key).mul_(ctx.scale)
        grad_key = torch.bmm(grad_scores.transpose(1, 2), query).mul_(ctx.scale)
        batch, _, length, width = ctx.shape
        shared = (batch, -1, length, width)
        return grad_query.view(ctx.shape), grad_key.view(shared), grad_value.view(shared)


def matmul_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """Batched matmuls that keep the S x S weights for the backward pass: faster than torch's kernel for short bf16
    sequences on a CPU. With a mask or dropout it is torch's kernel."""
    if mask is not None or dropout:
        return torch_attention(query, key, value, mask, dropout)
    return _CausalMatmul.apply(query, key, value)


def auto_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Torch's kernel, except where `matmul_attention` measured faster (docs/notebook.md)."""
    short = query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.shape[2] <= 512
    kernel = matmul_attention if short else torch_attention
    return kernel(query, key, value, mask, dropout)


ATTENTIONS = {
    "auto": auto_attention,
    "torch": torch_attention,
    "matmul": matmul_attention,
    "plain": plain_attention,
}
