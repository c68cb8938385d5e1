"""The logit lens: what the model would predict if it ended behind each of its layers."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from megalm.inspect.subject import Subject


@dataclass(frozen=True)
class Lens:
    """L + 1 rows: behind the embedding and each of L layers; S positions; K tokens, the likeliest first.

    entropy_bits: of the distribution over the vocabulary. kl_bits: of the model's own prediction from it, 0 in the last row.
    """

    tokens_LSK: Tensor
    probabilities_LSK: Tensor
    entropy_bits_LS: Tensor
    kl_bits_LS: Tensor


@torch.no_grad()
def logit_lens(subject: Subject, hidden: list[Tensor], top: int) -> Lens:
    """Final norm and output head on each layer's hidden states (S, H), as `Trace.hidden` has them (nostalgebraist 2020;
    arXiv:2303.08112, section 2): the last row is the model's own prediction."""
    own = log_probabilities(subject, hidden[-1])
    rows = []
    for hidden_SH in hidden:
        guess = log_probabilities(subject, hidden_SH)
        likeliest = guess.topk(min(top, guess.shape[-1]))
        entropy_S = -(guess.exp() * guess).sum(-1)
        kl_S = (own.exp() * (own - guess)).sum(-1)
        rows.append((likeliest.indices, likeliest.values.exp(), entropy_S / math.log(2), kl_S / math.log(2)))
    return Lens(*(torch.stack(column) for column in zip(*rows, strict=True)))


def log_probabilities(subject: Subject, hidden_SH: Tensor) -> Tensor:
    """log p over the vocabulary (S, V) that the output head makes of a layer's hidden states, float32 at least."""
    hidden_S1H, norm = hidden_SH[:, None], subject.block.final_layernorm
    logits_SV = subject.logits(hidden_S1H if norm is None else norm(hidden_S1H))[0]
    return logits_SV.to(torch.promote_types(logits_SV.dtype, torch.float32)).log_softmax(-1)
