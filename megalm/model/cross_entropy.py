"""Cross entropy over a vocabulary that is split over tensor-parallel ranks."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

CACHED_ROWS = 64


def local_columns(padded_vocab_size: int, vocab_size: int, group: dist.ProcessGroup) -> tuple[int, int]:
    """Return (first, count): this rank's real columns of the padded vocabulary; the padding lies at the end."""
    width = padded_vocab_size // group.size()
    first = group.rank() * width
    return first, max(0, min(width, vocab_size - first))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _softmax_statistics(
    logits_TV: Tensor, labels_T: Tensor, first: int, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Overwrite logits by exp(logits - max) and return (loss_T, sum_T, column_T, is_mine_T).

    Maxima, sums and the labels' logits are completed over `group`.
    """
    split = group.size() > 1
    if logits_TV.shape[1]:
        maximum_T = logits_TV.amax(-1)
    else:
        maximum_T = logits_TV.new_full((logits_TV.shape[0],), -torch.inf)
    if split:
        dist.all_reduce(maximum_T, dist.ReduceOp.MAX, group=group)
    logits_TV.sub_(maximum_T[:, None])
    column_T = labels_T - first
    is_mine_T = (column_T >= 0) & (column_T < logits_TV.shape[1])
    column_T = column_T.where(is_mine_T, 0)
    if logits_TV.shape[1]:
        label_logit_T = logits_TV.gather(1, column_T[:, None]).squeeze(1).where(is_mine_T, 0.0)
    else:
        label_logit_T = torch.zeros_like(maximum_T)
    sum_T = logits_TV.exp_().sum(-1)
    if split:
        both = torch.stack([sum_T, label_logit_T])
        dist.all_reduce(both, group=group)
        sum_T, label_logit_T = both
    return sum_T.log() - label_logit_T, sum_T, column_T, is_mine_T


def _gradient_(
    exponentials_TV: Tensor, sum_T: Tensor, column_T: Tensor, is_mine_T: Tensor, scale_T: Tensor
) -> Tensor:
    """Overwrite exp(logits - max) by the logits' gradient: scale x (softmax - one_hot(label))."""
    exponentials_TV.mul_((scale_T / sum_T)[:, None])
    if exponentials_TV.shape[1]:
        exponentials_TV.scatter_add_(1, column_T[:, None], (-scale_T).where(is_mine_T, 0.0)[:, None])
    return exponentials_TV


class _VocabParallelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_TV: Tensor, labels_T: Tensor, first: int, group: dist.ProcessGroup
    ) -> Tensor:
        wide = logits_TV.to(_wide(logits_TV.dtype), copy=True)
        loss_T, sum_T, column_T, is_mine_T = _softmax_statistics(wide, labels_T, first, group)
        ctx.save_for_backward(wide, sum_T, column_T, is_mine_T)
        ctx.dtype = logits_TV.dtype
        return loss_T

    @staticmethod
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        exponentials_TV, sum_T, column_T, is_mine_T = ctx.saved_tensors
        gradient = _gradient_(exponentials_TV.clone(), sum_T, column_T, is_mine_T, grad_T)
        return gradient.to(ctx.dtype), None, None, None


def vocab_parallel_cross_entropy(
    logits_TV: Tensor, labels_T: Tensor, first: int, group: dist.ProcessGroup
) -> Tensor:
    """Per-token loss -log softmax(logits)[label], shape (T), float32 (float64 for float64 logits).

    logits_TV: this rank's real columns, from column `first` on. labels_T: ids in the whole vocabulary. The softmax runs
    over the columns of all ranks of `group`.
    """
    return _VocabParallelCrossEntropy.apply(logits_TV, labels_T, first, group)


def _loss_and_gradient_(
    logits_TV: Tensor, labels_T: Tensor, mask_T: Tensor, first: int, group: dist.ProcessGroup
) -> Tensor:
    """Return the sum of mask x loss and overwrite the logits by its gradient."""
    total = torch.zeros((), dtype=_wide(logits_TV.dtype), device=logits_TV.device)
    # a CPU works fastest on what fits its cache; across ranks a collective a block would cost more than that
    rows = CACHED_ROWS if logits_TV.device.type == "cpu" and group.size() == 1 else max(1, len(labels_T))
    for start in range(0, len(labels_T), rows):
        part = slice(start, start + rows)
        wide = logits_TV[part].to(total.dtype)
        scale_T = mask_T[part].to(total.dtype)
        loss_T, sum_T, column_T, is_mine_T = _softmax_statistics(wide, labels_T[part], first, group)
        total += (loss_T * scale_T).sum()
        gradient = _gradient_(wide, sum_T, column_T, is_mine_T, scale_T)
        if gradient.data_ptr() != logits_TV[part].data_ptr():
            logits_TV[part] = gradient
    return total


def _liger_loss_and_gradient_(logits_TV: Tensor, labels_T: Tensor, mask_T: Tensor) -> Tensor:
    """The same through Liger's Triton kernel on CUDA, for one rank that holds all columns."""
    from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction

    with torch.enable_grad():
        leaf = logits_TV.detach().requires_grad_()
        # no class weights, an index that no label has, no z-loss, no smoothing
        loss_T = LigerCrossEntropyFunction.apply(leaf, labels_T, None, -100, 0.0, 0.0, "none")[0]
        total = (loss_T.float() * mask_T).sum()
    (gradient,) = torch.autograd.grad(total, leaf)
    logits_TV.copy_(gradient)
    return total.detach()


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        labels_T: Tensor,
        mask_T: Tensor,
        first: int,
        group: dist.ProcessGroup,
        chunk: int,
        liger: bool,
    ) -> Tensor:
        wide = _wide(hidden_TH.dtype)
        total = torch.zeros((), dtype=wide, device=hidden_TH.device)
        needs_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        grad_hidden_TH = torch.empty_like(hidden_TH) if needs_gradient else None
        chunks = range(0, hidden_TH.shape[0], chunk)
        # sums over several chunks want more digits than bfloat16 has
        several = len(chunks) > 1
        grad_weight_VH = (
            torch.zeros_like(weight_VH, dtype=wide if several else None) if needs_gradient else None
        )
        for start in chunks:
            part = slice(start, start + chunk)
            logits = hidden_TH[part] @ weight_VH.T
            if liger:
                total += _liger_loss_and_gradient_(logits, labels_T[part], mask_T[part])
            else:
                total += _loss_and_gradient_(logits, labels_T[part], mask_T[part], first, group)
            if grad_hidden_TH is not None and grad_weight_VH is not None:
                torch.mm(logits, weight_VH, out=grad_hidden_TH[part])
                grad_weight_VH += logits.T @ hidden_TH[part]
        if grad_hidden_TH is not None and grad_weight_VH is not None:
            # a sum over tokens may be beyond the range of fp16, though the gradient, divided by their number, is not
            kept = wide if weight_VH.dtype == torch.float16 else weight_VH.dtype
            ctx.save_for_backward(grad_hidden_TH, grad_weight_VH.to(kept))
            ctx.dtype = weight_VH.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None, None, None]:  # type: ignore[override]
        grad_hidden_TH, grad_weight_VH = ctx.saved_tensors
        # `grad` stays a wide scalar: rounded to bfloat16, 1 / weight would bias every gradient by up to 0.4%
        grad_weight = (grad_weight_VH * grad).to(ctx.dtype)
        return grad_hidden_TH * grad, grad_weight, None, None, None, None, None, None


def linear_cross_entropy(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    labels_T: Tensor,
    mask_T: Tensor,
    first: int,
    group: dist.ProcessGroup,
    chunk: int = 1024,
    liger: bool = False,
) -> Tensor:
    """Sum over tokens of mask x cross entropy of `hidden @ weight.T`, without ever holding all logits.

    weight_VH: this rank's real rows, from vocabulary entry `first` on. Gradients are computed on the way forward, `chunk`
    tokens at a time, so the backward pass only scales them (the idea of Liger's fused linear cross entropy,
    arXiv:2410.10989); the gradient of `hidden_TH` still has to be summed over `group` by the caller. liger: softmax and loss
    by Liger's kernel, on CUDA and one rank.
    Returns a scalar in float32 (float64 for float64).
    """
    return _LinearCrossEntropy.apply(hidden_TH, weight_VH, labels_T, mask_T, first, group, chunk, liger)
