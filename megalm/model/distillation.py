"""Distillation over a vocabulary that is split over tensor-parallel ranks: a student's logits against a teacher's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from megalm.model.cross_entropy import CACHED_ROWS


class TeacherLogits(Protocol):
    """What a teacher says of a microbatch's tokens, a part of them at a time."""

    def __call__(self, part: slice) -> Tensor:
        """Logits (tokens of `part`, this rank's columns); -inf where the teacher says nothing."""


@dataclass(frozen=True)
class HiddenTeacher:
    """A teacher's last hidden states and this rank's real rows of its output matrix: logits are made when needed."""

    hidden_TH: Tensor
    weight_VH: Tensor

    def __call__(self, part: slice) -> Tensor:
        """See TeacherLogits."""
        return self.hidden_TH[part] @ self.weight_VH.T


@dataclass(frozen=True)
class TopKTeacher:
    """A teacher's largest logits and their tokens; its distribution is that of these alone.

    first, columns: this rank's share of the vocabulary.
    """

    ids_TK: Tensor
    logits_TK: Tensor
    first: int
    columns: int

    def __call__(self, part: slice) -> Tensor:
        """See TeacherLogits."""
        column_TK = self.ids_TK[part].long() - self.first
        # what other ranks hold lands in a column too many, which is cut off
        column_TK = column_TK.where((column_TK >= 0) & (column_TK < self.columns), self.columns)
        logits_TK = self.logits_TK[part]
        wide_TV = logits_TK.new_full((len(logits_TK), self.columns + 1), -torch.inf)
        return wide_TV.scatter_(1, column_TK, logits_TK)[:, : self.columns]


@dataclass(frozen=True)
class Objective:
    """(1 - alpha) x cross entropy + alpha x temperature^2 x divergence of both distributions at that temperature.

    Hinton et al. (arXiv:1503.02531, section 2): the square keeps the gradient's size whatever the temperature.
    divergence: `forward_kl` KL(teacher || student), `reverse_kl` KL(student || teacher) (MiniLLM, arXiv:2306.08543), or
    `jsd`, beta KL(teacher || m) + (1 - beta) KL(student || m) with m = beta teacher + (1 - beta) student (GKD,
    arXiv:2306.13649, equation 1).
    """

    alpha: float = 0.5
    temperature: float = 1.0
    divergence: str = "forward_kl"
    beta: float = 0.5


def linear_distillation(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    labels_T: Tensor,
    mask_T: Tensor,
    teacher: TeacherLogits,
    objective: Objective,
    first: int,
    group: dist.ProcessGroup,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Return (sum over tokens of mask x objective, its two summands without gradient), fp32 (fp64 for fp64).

    hidden_TH, weight_VH: the student's hidden states and this rank's real rows of its output matrix, from vocabulary entry
    `first` on. Neither model's logits are ever all held or gathered: `chunk` tokens at a time, gradients on the way
    forward (see `linear_cross_entropy`); that of `hidden_TH` still has to be summed over `group` by the caller.
    """
    return _LinearDistillation.apply(
        hidden_TH, weight_VH, labels_T, mask_T, teacher, objective, first, group, chunk
    )


class _LinearDistillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        labels_T: Tensor,
        mask_T: Tensor,
        teacher: TeacherLogits,
        objective: Objective,
        first: int,
        group: dist.ProcessGroup,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.float64 if hidden_TH.dtype == torch.float64 else torch.float32
        summands = torch.zeros(2, dtype=wide, device=hidden_TH.device)
        grad_hidden_TH = torch.empty_like(hidden_TH)
        chunks = range(0, hidden_TH.shape[0], chunk)
        # sums over several chunks want more digits than bfloat16 has
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=wide if len(chunks) > 1 else None)
        for start in chunks:
            part = slice(start, min(start + chunk, hidden_TH.shape[0]))
            logits_TV = hidden_TH[part] @ weight_VH.T
            # a CPU works fastest on what fits its cache; across ranks a collective a block would cost more than that
            alone_on_cpu = logits_TV.device.type == "cpu" and group.size() == 1
            rows = CACHED_ROWS if alone_on_cpu else max(1, len(logits_TV))
            for begin in range(0, len(logits_TV), rows):
                block = slice(start + begin, min(start + begin + rows, part.stop))
                found, gradient_TV = _summands_and_gradient(
                    logits_TV[begin : begin + rows].to(wide),
                    teacher(block).to(wide),
                    labels_T[block] - first,
                    mask_T[block].to(wide),
                    objective,
                    group,
                )
                summands += found
                logits_TV[begin : begin + rows] = gradient_TV
            torch.mm(logits_TV, weight_VH, out=grad_hidden_TH[part])
            grad_weight_VH += logits_TV.T @ hidden_TH[part]
        if group.size() > 1:
            dist.all_reduce(summands, group=group)
        # a sum over tokens may be beyond the range of fp16, though the gradient, divided by their number, is not
        kept = wide if weight_VH.dtype == torch.float16 else weight_VH.dtype
        ctx.save_for_backward(grad_hidden_TH, grad_weight_VH.to(kept))
        ctx.dtype = weight_VH.dtype
        ctx.mark_non_differentiable(summands)
        return summands.sum(), summands

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _unused: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_hidden_TH, grad_weight_VH = ctx.saved_tensors
        return grad_hidden_TH * grad, (grad_weight_VH * grad).to(ctx.dtype), *[None] * 7


def _summands_and_gradient(
    student_TV: Tensor,
    teacher_TV: Tensor,
    column_T: Tensor,
    mask_T: Tensor,
    objective: Objective,
    group: dist.ProcessGroup,
) -> tuple[Tensor, Tensor]:
    """(This rank's part of both summands, the gradient by the student's logits on its columns)."""
    alpha, temperature = objective.alpha, objective.temperature
    log_TV, soft_TV, teacher_TV = _log_softmaxes(
        [student_TV, student_TV / temperature, teacher_TV / temperature], group
    )
    hard_T, gradient_TV = _label_loss(log_TV, column_T)
    soft_T, soft_gradient_TV = _divergence(soft_TV, teacher_TV, objective, group)
    summands = [(1 - alpha) * (hard_T * mask_T).sum(), alpha * temperature**2 * (soft_T * mask_T).sum()]
    # by the logits, not by what the temperature makes of them: one of its factors goes
    gradient_TV.mul_(1 - alpha).add_(soft_gradient_TV, alpha=alpha * temperature)
    return torch.stack(summands), gradient_TV.mul_(mask_T[:, None])


def _log_softmaxes(logits: Sequence[Tensor], group: dist.ProcessGroup) -> list[Tensor]:
    """Logarithms of the softmax of each, over the columns of all ranks of `group`."""
    empty = logits[0].shape[1] == 0
    maxima = torch.stack([x.new_full(x.shape[:1], -torch.inf) if empty else x.amax(-1) for x in logits])
    if group.size() > 1:
        dist.all_reduce(maxima, dist.ReduceOp.MAX, group=group)
    shifted = [x - maximum_T[:, None] for x, maximum_T in zip(logits, maxima, strict=True)]
    sums = torch.stack([x.exp().sum(-1) for x in shifted])
    if group.size() > 1:
        dist.all_reduce(sums, group=group)
    return [x.sub_(sum_T.log()[:, None]) for x, sum_T in zip(shifted, sums, strict=True)]


def _label_loss(log_TV: Tensor, column_T: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy where the label is on this rank, else 0, and its gradient by the logits."""
    gradient_TV = log_TV.exp()
    if not log_TV.shape[1]:
        return log_TV.new_zeros(len(log_TV)), gradient_TV
    is_mine_T = (column_T >= 0) & (column_T < log_TV.shape[1])
    column_T1 = column_T.where(is_mine_T, 0)[:, None]
    gradient_TV.scatter_add_(1, column_T1, -is_mine_T.to(log_TV.dtype)[:, None])
    return -log_TV.gather(1, column_T1).squeeze(1).where(is_mine_T, 0.0), gradient_TV


def _divergence(
    student_TV: Tensor, teacher_TV: Tensor, objective: Objective, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """This rank's part of the divergence per token, from log-probabilities, and its gradient by the student's logits."""
    student_probability_TV = student_TV.exp()
    if objective.divergence == "forward_kl":
        probability_TV = teacher_TV.exp()
        part_T = _expected(probability_TV, teacher_TV, student_TV)
        return part_T, student_probability_TV.sub_(probability_TV)
    if objective.divergence == "reverse_kl":
        terms_TV = student_probability_TV * (student_TV - teacher_TV)
        part_T = terms_TV.sum(-1)
    else:
        beta = objective.beta
        mixed_TV = torch.logaddexp(teacher_TV + math.log(beta), student_TV + math.log(1 - beta))
        terms_TV = (1 - beta) * student_probability_TV * (student_TV - mixed_TV)
        part_T = terms_TV.sum(-1) + beta * _expected(teacher_TV.exp(), teacher_TV, mixed_TV)
    # through the softmax: p (g - sum of p g) with p g = terms
    whole_T = terms_TV.sum(-1)
    if group.size() > 1:
        dist.all_reduce(whole_T, group=group)
    return part_T, terms_TV.sub_(student_probability_TV.mul_(whole_T[:, None]))


def _expected(probability_TV: Tensor, log_TV: Tensor, other_TV: Tensor) -> Tensor:
    """Sum of p (log p - log q), where p = 0 counts as nothing."""
    return (probability_TV * (log_TV - other_TV)).where(probability_TV > 0, 0.0).sum(-1)
