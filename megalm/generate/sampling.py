"""From logits to the next token: penalty, temperature, top-k, top-p and a draw that depends on nothing but its seed."""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from megalm.generate.request import GenerationOptions


def penalize_repetition(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Make the tokens marked in `seen_BV` less likely: positive logits / penalty, negative ones x penalty.

    CTRL, arXiv:1909.05858, section 4.1, with the sign rule of Hugging Face's implementation.
    """
    penalized_BV = torch.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    return torch.where(seen_BV, penalized_BV, logits_BV)


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Set all but each row's `k` largest logits to -inf; logits equal to the k-th stay."""
    smallest_B1 = logits_BV.topk(min(k, logits_BV.shape[-1])).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < smallest_B1, -math.inf)


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Keep each row's smallest set of likeliest tokens whose probability reaches `p`, at least one token.

    Nucleus sampling, arXiv:1904.09751, section 3.1; the others become -inf.
    """
    sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True, stable=True)
    probability_BV = sorted_BV.double().softmax(-1)
    # what lies above the likeliest token is exactly 0, so that one always stays
    dropped_BV = probability_BV.cumsum(-1) - probability_BV >= p
    return logits_BV.masked_fill(dropped_BV.scatter(-1, order_BV, dropped_BV), -math.inf)


def shape_logits(logits_BV: Tensor, options: GenerationOptions) -> Tensor:
    """Apply temperature, top-k and top-p in this order, which is Hugging Face's and vLLM's."""
    logits_BV = logits_BV / options.temperature
    if options.top_k:
        logits_BV = keep_top_k(logits_BV, options.top_k)
    if options.top_p < 1:
        logits_BV = keep_top_p(logits_BV, options.top_p)
    return logits_BV


def uniform(seed: int, sequence: int, step: int) -> float:
    """A number in [0, 1) that is a function of (seed, index of the sequence, tokens it has got) alone."""
    digest = hashlib.blake2b(f"{seed}/{sequence}/{step}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def draw(logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Invert the cumulative distribution of softmax(logits) at `uniform_B` (float64); token ids, shape (B).

    The tokens stand in the vocabulary's order: sorted by probability, near-ties would change places with the last digit
    of a logit and another layout could draw another token.
    """
    cumulative_BV = logits_BV.double().softmax(-1).cumsum(-1)
    # scaled by the total, which rounding keeps from being 1: no draw falls past the last token
    threshold_B1 = (uniform_B * cumulative_BV[:, -1])[:, None]
    return torch.searchsorted(cumulative_BV, threshold_B1, right=True).squeeze(-1)


def choose(
    logits_BV: Tensor,
    options: GenerationOptions,
    sequences: Sequence[int],
    steps: Sequence[int],
    seen_BV: Tensor | None,
) -> Tensor:
    """Pick each row's next token, shape (B), int64.

    logits_BV: float32 or float64. sequences, steps: of each row, its index among all prompts and the number of tokens it
    has got so far. seen_BV: tokens of its prompt and text, used where `repetition_penalty` is not 1.
    """
    if seen_BV is not None:
        logits_BV = penalize_repetition(logits_BV, seen_BV, options.repetition_penalty)
    if options.greedy:
        return logits_BV.argmax(-1)
    numbers = [uniform(options.seed, sequence, step) for sequence, step in zip(sequences, steps, strict=True)]
    uniform_B = torch.tensor(numbers, dtype=torch.float64, device=logits_BV.device)
    return draw(shape_logits(logits_BV, options), uniform_B)
