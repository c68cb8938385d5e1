"""Causal attention through packages for CUDA: flash-attn and Transformer Engine, which are imported at first use."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """In place of a mask: attention is causal inside each document.

    offsets: where each document begins among the tokens of all rows one after another, and their number at the end; int32.
    """

    offsets: Tensor
    longest: int

    @classmethod
    def of(cls, segments_BS: Tensor) -> "Documents":
        """From the number of the document that each token belongs to; a row's end ends a document too."""
        rows, length = segments_BS.shape
        begins_BS = torch.ones_like(segments_BS, dtype=torch.bool)
        begins_BS[:, 1:] = segments_BS[:, 1:] != segments_BS[:, :-1]
        begins = begins_BS.flatten().nonzero().flatten()
        # the longest possible: to ask for the longest that is there would wait for the device
        return cls(torch.cat([begins, begins.new_tensor([rows * length])]).int(), length)


def flash_causal(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """flash-attn (arXiv:2307.08691); the queries are the last tokens of the keys. Shapes (B, heads, tokens, width)."""
    from flash_attn import flash_attn_func

    # it wants (B, tokens, heads, width); grouped heads are its own business
    parts = (x.transpose(1, 2) for x in (query, key, value))
    return flash_attn_func(*parts, dropout_p=dropout, causal=True).transpose(1, 2)


def flash_documents(
    query: Tensor, key: Tensor, value: Tensor, documents: Documents, dropout: float
) -> Tensor:
    """The same inside each document, without a mask: time and memory go with the documents' lengths."""
    from flash_attn import flash_attn_varlen_func

    rows = query.shape[0]
    parts = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    output = flash_attn_varlen_func(
        *parts,
        documents.offsets,
        documents.offsets,
        documents.longest,
        documents.longest,
        dropout_p=dropout,
        causal=True,
    )
    return output.unflatten(0, (rows, -1)).transpose(1, 2)


@functools.cache
def _transformer_engine(heads: int, groups: int, width: int, dropout: float, mask: str) -> Any:
    """Its module holds no parameters, so that all layers share one."""
    from transformer_engine.pytorch import DotProductAttention

    return DotProductAttention(
        heads,
        width,
        num_gqa_groups=groups,
        attention_dropout=dropout,
        qkv_format="sbhd",
        attn_mask_type=mask,
    )


def te_causal(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """Transformer Engine's choice of cuDNN's and flash-attn's kernels; the queries are the last tokens of the keys."""
    _, heads, queries, width = query.shape
    mask = "causal" if queries == key.shape[2] else "causal_bottom_right"
    module = _transformer_engine(heads, key.shape[1], width, dropout, mask)
    output_SBH = module(*(x.permute(2, 0, 1, 3).contiguous() for x in (query, key, value)))
    return output_SBH.unflatten(2, (heads, width)).permute(1, 2, 0, 3)
