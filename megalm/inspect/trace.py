"""One forward pass with all that it leaves inside: hidden states layer by layer, and where each head looks."""

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megalm.inspect.subject import Subject
from megalm.model.attention import CoreAttention
from megalm.model.attention_kernels import causal_mask
from megalm.model.positions import alibi_bias
from megalm.model.state import ForwardState


@dataclass(frozen=True)
class Trace:
    """Of one text of S tokens. Kept in the model's number format, attention in float32 at least.

    hidden: (S, H) behind the embedding and behind each layer, before any final norm. attention: of each layer (N, S, S), the share that a query's
    (row) attention gives each key. output: logits (S, V), or of a classifier those of its labels (C).
    """

    hidden: list[Tensor]
    attention: list[Tensor]
    output: Tensor


@torch.no_grad()
def trace(subject: Subject, ids: list[int]) -> Trace:
    """Run the model on a row of token ids."""
    hidden: list[Tensor] = []
    attention: list[Tensor] = []

    def keep_hidden(module: Any, inputs: Any, output: Any) -> None:
        # the library's layers return (hidden states, context)
        hidden.append((output[0] if isinstance(output, tuple) else output)[:, 0])

    def keep_attention(module: Any, inputs: Any, named: Any) -> None:
        attention.append(attention_weights(module, inputs[0], inputs[1], named["packed_seq_params"])[0])

    with contextlib.ExitStack() as stack:
        hooks = [subject.model.embedding.register_forward_hook(keep_hidden)]
        for layer in subject.block.layers:
            core = layer.self_attention.core_attention
            hooks.append(core.register_forward_pre_hook(keep_attention, with_kwargs=True))
            hooks.append(layer.register_forward_hook(keep_hidden))
        for hook in hooks:
            stack.callback(hook.remove)
        tokens_1S = subject.tensor(ids)
        if subject.labels:
            return Trace(hidden, attention, subject.label_logits(tokens_1S)[0])
        return Trace(hidden, attention, subject.logits(subject.hidden(tokens_1S))[0])


def attention_weights(
    core: CoreAttention, query_SBND: Tensor, key_SBGD: Tensor, state: ForwardState
) -> Tensor:
    """softmax(QK' / sqrt(D) + bias) by the formula (arXiv:1706.03762, eq. 1), (B, N, S, S), in float32 at least; rows without padding.

    The kernels that train and serve never hold it.
    """
    if core.rotary is not None:
        query_SBND, key_SBGD = core.rotary(query_SBND, state), core.rotary(key_SBGD, state)
    wide = torch.promote_types(query_SBND.dtype, torch.float32)
    query_BNSD, key_BGSD = (x.permute(1, 2, 0, 3).to(wide) for x in (query_SBND, key_SBGD))
    key_BNSD = key_BGSD.repeat_interleave(query_BNSD.shape[1] // key_BGSD.shape[1], 1)
    scores_BNSS = query_BNSD @ key_BNSD.transpose(-1, -2) / math.sqrt(query_BNSD.shape[-1])
    length = scores_BNSS.shape[-1]
    if core.slopes_N is not None:
        scores_BNSS = scores_BNSS + alibi_bias(core.slopes_N.to(scores_BNSS.device, wide), length, length)
    if state.causal:
        scores_BNSS = scores_BNSS.masked_fill(~causal_mask(length, length, scores_BNSS.device), -math.inf)
    return scores_BNSS.softmax(-1)


@dataclass(frozen=True)
class HeadFigures:
    """What a head does in a text, as means over its queries.

    on_itself, on_previous, on_first: share of attention on the query's own token, the one before it, the text's first one. entropy_bits: of its
    attention, 0 where all is on one token. distance: tokens between query and key, weighted by attention.
    """

    on_itself: float
    on_previous: float
    on_first: float
    entropy_bits: float
    distance: float


def head_figures(attention_NSS: Tensor) -> list[HeadFigures]:
    """Of each head of a layer. The first query, which has no token before it, counts 0 for `on_previous`."""
    length = attention_NSS.shape[-1]
    order = torch.arange(length, device=attention_NSS.device)
    distance_SS = (order[:, None] - order).abs().to(attention_NSS.dtype)
    figures_N5 = torch.stack(
        [
            attention_NSS.diagonal(dim1=1, dim2=2).mean(-1),
            attention_NSS.diagonal(-1, 1, 2).sum(-1) / max(length - 1, 1),
            attention_NSS[:, :, 0].mean(-1),
            -torch.xlogy(attention_NSS, attention_NSS).sum(-1).mean(-1) / math.log(2),
            (attention_NSS * distance_SS).sum(-1).mean(-1),
        ],
        dim=1,
    )
    return [HeadFigures(*row) for row in figures_N5.tolist()]
