"""From logits to the next token: biases, penalties, temperature, cuts and a draw that depends on nothing but its seed."""

import copy
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from megalm.generate.request import GenerationOptions

LIKELY = 512
"""So many tokens are looked at before all are."""


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
    probability_BV = logits_BV.double().softmax(-1)
    size = logits_BV.shape[-1]
    for width in (min(LIKELY, size), size):  # sorting a whole vocabulary takes longer than all else
        sorted_BK, order_BK = probability_BV.topk(width)
        if (sorted_BK.sum(-1) >= p).all():
            break
    # what lies above the likeliest token is exactly 0, so that one always stays
    kept_BK = sorted_BK.cumsum(-1) - sorted_BK < p
    kept_BV = torch.zeros_like(logits_BV, dtype=torch.bool).scatter(-1, order_BK, kept_BK)
    return logits_BV.masked_fill(~kept_BV, -math.inf)


def keep_min_p(logits_BV: Tensor, p: float) -> Tensor:
    """Set tokens less likely than `p` x the likeliest one to -inf (min-p sampling, arXiv:2407.01082, section 3)."""
    return logits_BV.masked_fill(logits_BV < logits_BV.amax(-1, keepdim=True) + math.log(p), -math.inf)


def shape_logits(logits_BV: Tensor, options: GenerationOptions) -> Tensor:
    """Apply temperature, top-k, top-p and min-p in this order, which is Hugging Face's."""
    if options.temperature != 1:
        logits_BV = logits_BV / options.temperature
    if options.top_k:
        logits_BV = keep_top_k(logits_BV, options.top_k)
    if options.top_p < 1:
        logits_BV = keep_top_p(logits_BV, options.top_p)
    if options.min_p:
        logits_BV = keep_min_p(logits_BV, options.min_p)
    return logits_BV


def uniform(seed: int, sequence: str, step: int) -> float:
    """A number in [0, 1) that is a function of (seed, name of the sequence, tokens it has got) alone."""
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
    drawn_B = torch.searchsorted(cumulative_BV, threshold_B1, right=True).squeeze(-1)
    # of logits that are no numbers, or all -inf, it lies behind the vocabulary, where other rows would stumble over it
    return drawn_B.clamp_(max=logits_BV.shape[-1] - 1)


class TokenCounts:
    """How often each token stands in a sequence: where in its prompt, and how often in what it was continued with."""

    def __init__(self, prompt: Sequence[int], vocab_size: int, device: torch.device) -> None:
        self.in_prompt_V = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self.in_prompt_V[torch.tensor(prompt, device=device)] = True
        self.in_text_V = torch.zeros(vocab_size, dtype=torch.int32, device=device)

    def add(self, token: int) -> None:
        """Count a token of the text."""
        self.in_text_V[token] += 1

    def copy(self) -> "TokenCounts":
        """The same counts, which go their own way."""
        other = copy.copy(self)
        other.in_text_V = self.in_text_V.clone()
        return other


def adjust_logits(logits_V: Tensor, options: GenerationOptions, counts: TokenCounts | None) -> Tensor:
    """Add the request's biases and subtract its penalties; also of log-probabilities (V), for beams.

    Presence and frequency penalties are OpenAI's: logit - frequency x count - presence x (count > 0), of the text's tokens.
    """
    if options.logit_bias:
        logits_V = logits_V.clone()
        tokens = torch.tensor(list(options.logit_bias), device=logits_V.device)
        values = torch.tensor(list(options.logit_bias.values()), dtype=logits_V.dtype, device=logits_V.device)
        logits_V[tokens] += values
    if counts is None:
        return logits_V
    if options.repetition_penalty != 1:
        seen_V = counts.in_prompt_V | (counts.in_text_V > 0)
        logits_V = penalize_repetition(logits_V[None], seen_V[None], options.repetition_penalty)[0]
    if options.presence_penalty or options.frequency_penalty:
        penalty_V = options.frequency_penalty * counts.in_text_V + options.presence_penalty * (
            counts.in_text_V > 0
        )
        logits_V = logits_V - penalty_V.to(logits_V.dtype)
    return logits_V


def choose(
    logits_BV: Tensor, options: Sequence[GenerationOptions], sequences: Sequence[str], steps: Sequence[int]
) -> Tensor:
    """Pick each row's next token, shape (B), int64, each row by its own options.

    logits_BV: float32 or float64. sequences, steps: of each row, the name that tells its draws from those of others, and
    the number of tokens it has got so far. A row's choice depends on no other row.
    """
    chosen_B = torch.empty(len(options), dtype=torch.int64, device=logits_BV.device)
    alike: dict[tuple[Any, ...], list[int]] = {}
    for row, one in enumerate(options):
        shape = () if one.greedy else (one.temperature, one.top_k, one.top_p, one.min_p)
        alike.setdefault(shape, []).append(row)
    for shape, rows in alike.items():
        part_BV = logits_BV if len(rows) == len(options) else logits_BV[rows]
        if shape:
            numbers = [uniform(options[row].seed, sequences[row], steps[row]) for row in rows]
            uniform_B = torch.tensor(numbers, dtype=torch.float64, device=logits_BV.device)
            chosen_B[rows] = draw(shape_logits(part_BV, options[rows[0]]), uniform_B)
        else:
            chosen_B[rows] = part_BV.argmax(-1)
    return chosen_B
