"""Log-probabilities of given tokens, and entropies, over a vocabulary that is split over tensor-parallel ranks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megalm.model.cross_entropy import CACHED_ROWS
from megalm.model.gpt import GPT


def linear_logprobs(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    labels_T: Tensor,
    first: int,
    group: dist.ProcessGroup,
    temperature: float = 1.0,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor]:
    """log p(label) and the entropy of p, in nats, each (T), with p = softmax(hidden @ weight.T / temperature).

    weight_VH: this rank's real rows, from vocabulary entry `first` on; the softmax runs over the columns of all ranks of
    `group`, in float32 (float64 for float64). Logits are never all held: they are made `chunk` tokens at a time, and once more
    on the way back. Both results may have a gradient; that of `hidden_TH` still has to be summed over `group` by the caller.
    """
    return _LinearLogprobs.apply(hidden_TH, weight_VH, labels_T, first, group, temperature, chunk)


@dataclass(frozen=True)
class LogprobHead:
    """A `ForwardState.head` that gives, in place of logits, log-probabilities of labels and entropies: (2, B, S).

    labels_BS: the token that follows each. mask_BS: what counts (not 0); elsewhere nothing is computed, results are 0. The same on
    all tensor-parallel ranks, as are the results. temperature: divides the logits, as in sampling.
    """

    labels_BS: Tensor
    mask_BS: Tensor
    temperature: float = 1.0

    def __call__(self, model: GPT, hidden_states: Tensor) -> Tensor:
        """See `ForwardState`."""
        counted_SB = self.mask_BS.T.bool()
        results = linear_logprobs(
            model.whole_hidden(hidden_states)[counted_SB],
            model.real_output_weight(),
            self.labels_BS.T[counted_SB],
            model.first_column,
            model.pg_collection.tp,
            self.temperature,
            model.chunk_tokens,
        )
        parts = [
            result_T.new_zeros(counted_SB.shape).masked_scatter(counted_SB, result_T) for result_T in results
        ]
        return torch.stack(parts).transpose(1, 2)


def _softmax_figures(
    logits_TV: Tensor, column_T: Tensor, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """(Logarithm of the normaliser, entropy, log p(label)) of softmax(logits), each (T), completed over `group`.

    column_T: where each label is among these columns; outside of them if it is another rank's.
    """
    split = group.size() > 1
    if logits_TV.shape[1]:
        maximum_T = logits_TV.amax(-1)
    else:
        maximum_T = logits_TV.new_full((len(logits_TV),), -torch.inf)
    if split:
        dist.all_reduce(maximum_T, dist.ReduceOp.MAX, group=group)
    shifted_TV = logits_TV - maximum_T[:, None]
    is_mine_T, label_T = _found(column_T, shifted_TV.shape[1])
    label_logit_T = (
        shifted_TV.gather(1, label_T[:, None]).squeeze(1).where(is_mine_T, 0.0)
        if shifted_TV.shape[1]
        else torch.zeros_like(maximum_T)
    )
    exponentials_TV = shifted_TV.exp()
    # exp(-inf) x -inf is 0 here: what has no probability adds nothing to the entropy
    product_T = (exponentials_TV * shifted_TV.clamp(min=torch.finfo(shifted_TV.dtype).min)).sum(-1)
    sums = torch.stack([exponentials_TV.sum(-1), product_T, label_logit_T])
    if split:
        dist.all_reduce(sums, group=group)
    sum_T, product_T, label_logit_T = sums
    log_sum_T = sum_T.log()
    return maximum_T + log_sum_T, log_sum_T - product_T / sum_T, label_logit_T - log_sum_T


def _found(column_T: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """(Whether each is one of these columns, the column, 0 where it is not)."""
    is_mine_T = (column_T >= 0) & (column_T < columns)
    return is_mine_T, column_T.where(is_mine_T, 0)


def _gradient(
    logits_TV: Tensor,
    column_T: Tensor,
    normaliser_T: Tensor,
    entropy_T: Tensor,
    grad_logprob_T: Tensor,
    grad_entropy_T: Tensor,
) -> Tensor:
    """By the logits: of log p(label) it is one_hot(label) - p, of the entropy H it is -p (log p + H)."""
    log_TV = logits_TV - normaliser_T[:, None]
    probability_TV = log_TV.exp()
    log_TV.clamp_(min=torch.finfo(log_TV.dtype).min)
    factor_TV = (log_TV + entropy_T[:, None]).mul_(grad_entropy_T[:, None]).add_(grad_logprob_T[:, None])
    gradient_TV = probability_TV.mul_(factor_TV).neg_()
    if gradient_TV.shape[1]:
        is_mine_T, label_T = _found(column_T, gradient_TV.shape[1])
        gradient_TV.scatter_add_(1, label_T[:, None], grad_logprob_T.where(is_mine_T, 0.0)[:, None])
    return gradient_TV


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        labels_T: Tensor,
        first: int,
        group: dist.ProcessGroup,
        temperature: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        kept = torch.empty(3, len(labels_T), dtype=_wide(hidden_TH.dtype), device=hidden_TH.device)
        column_T = labels_T - first
        ctx.temperature, ctx.chunk, ctx.group = temperature, chunk, group
        for part, logits_TV in _logits(hidden_TH, weight_VH, chunk):
            for block in _blocks(part, logits_TV, group):
                wide_TV = logits_TV[block.start - part.start : block.stop - part.start].to(kept.dtype)
                kept[:, block] = torch.stack(_softmax_figures(wide_TV / temperature, column_T[block], group))
        normaliser_T, entropy_T, logprob_T = kept.unbind()
        ctx.save_for_backward(hidden_TH, weight_VH, column_T, normaliser_T, entropy_T)
        return logprob_T, entropy_T

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad_logprob_T: Tensor, grad_entropy_T: Tensor
    ) -> tuple[Tensor | None, ...]:
        hidden_TH, weight_VH, column_T, normaliser_T, entropy_T = ctx.saved_tensors
        wide = normaliser_T.dtype
        grad_hidden_TH = torch.empty_like(hidden_TH)
        # sums over several chunks want more digits than bfloat16 has
        several = len(column_T) > ctx.chunk
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=wide if several else None)
        for part, logits_TV in _logits(hidden_TH, weight_VH, ctx.chunk):
            for block in _blocks(part, logits_TV, ctx.group):
                rows = slice(block.start - part.start, block.stop - part.start)
                gradient_TV = _gradient(
                    logits_TV[rows].to(wide) / ctx.temperature,
                    column_T[block],
                    normaliser_T[block],
                    entropy_T[block],
                    grad_logprob_T[block] / ctx.temperature,
                    grad_entropy_T[block] / ctx.temperature,
                )
                logits_TV[rows] = gradient_TV
            torch.mm(logits_TV, weight_VH, out=grad_hidden_TH[part])
            grad_weight_VH += logits_TV.T @ hidden_TH[part]
        return grad_hidden_TH, grad_weight_VH.to(weight_VH.dtype), *[None] * 5


def _logits(hidden_TH: Tensor, weight_VH: Tensor, chunk: int) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(hidden_TH), chunk):
        part = slice(start, min(start + chunk, len(hidden_TH)))
        yield part, hidden_TH[part] @ weight_VH.T


def _blocks(part: slice, logits_TV: Tensor, group: dist.ProcessGroup) -> Iterator[slice]:
    """What to work on at a time: a CPU is fastest on what fits its cache; a collective a block would cost more than that."""
    alone_on_cpu = logits_TV.device.type == "cpu" and group.size() == 1
    rows = CACHED_ROWS if alone_on_cpu else max(1, len(logits_TV))
    for start in range(part.start, part.stop, rows):
        yield slice(start, min(start + rows, part.stop))
