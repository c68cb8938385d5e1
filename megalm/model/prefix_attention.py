"""Causal attention of the last tokens of a sequence to all of it, by torch's fused kernels and without a mask in memory."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """Boolean (queries, keys), true where a query may look; the queries are the last of the keys."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def prefix_attention(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """Map queries (B, N, Q, D) and keys and values (B, G, K, D), of which the last Q are the queries', to (B, N, Q, D)."""
    queries, keys = query.shape[2], key.shape[2]
    grouped = query.shape[1] != key.shape[1]
    if query.device.type == "cpu" and not dropout:
        return _TwoParts.apply(query, key, value)
    if query.device.type == "cpu":  # dropout has no fused kernel there
        mask = causal_mask(queries, keys, query.device)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, enable_gqa=grouped
        )
    if grouped and query.dtype not in (torch.bfloat16, torch.float16):
        # flash attention alone takes grouped heads, and 16-bit numbers alone
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
        grouped = False
    from torch.nn.attention.bias import causal_lower_right  # which imports torch's compiler

    bias = causal_lower_right(queries, keys)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, dropout_p=dropout, enable_gqa=grouped
    )


class _TwoParts(torch.autograd.Function):
    """Torch's CPU kernel knows causal attention of equal lengths alone: the earlier keys in full, the queries' own causally.

    Both parts' softmaxes are joined by their log-sum-exp, as FlashAttention joins its blocks (arXiv:2205.14135, section 3.1); with the
    joint one the kernel's backward pass gives each part's gradients.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        before = key.shape[2] - query.shape[2]
        early, early_lse = _flash(query, key[:, :, :before], value[:, :, :before])
        own, own_lse = _flash(query, key[:, :, before:], value[:, :, before:], is_causal=True)
        lse = torch.logaddexp(early_lse, own_lse)
        early_share, own_share = ((x - lse).exp()[..., None] for x in (early_lse, own_lse))
        output = (early * early_share + own * own_share).to(query.dtype)
        ctx.save_for_backward(query, key, value, output, lse)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        query, key, value, output, lse = ctx.saved_tensors
        before = key.shape[2] - query.shape[2]
        gradient = gradient.contiguous()
        early, own = (
            _flash_backward(gradient, query, key[:, :, part], value[:, :, part], output, lse, 0.0, causal)
            for part, causal in ((slice(before), False), (slice(before, None), True))
        )
        return early[0] + own[0], torch.cat([early[1], own[1]], 2), torch.cat([early[2], own[2]], 2)
