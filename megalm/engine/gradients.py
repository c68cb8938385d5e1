"""Global gradient norm and clipping."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megalm.parallel.layout import Layout


@torch.no_grad()
def global_norm(optimizer: Any, device: torch.device) -> Tensor:
    """Euclidean norm over all parameters of the model, each counted once, on every rank; scalar.

    `optimizer` is Megatron-Core's: it knows which gradients here are replicas of others. The sum runs in float64, so
    that the layout does not show in it.
    """
    total = torch.zeros((), dtype=torch.float64, device=device)
    for part in optimizer.chained_optimizers:
        gradients = part.get_main_grads_for_grad_norm()
        squares = torch.zeros_like(total)
        if gradients:
            squares += torch.stack(torch._foreach_norm(gradients)).double().square().sum()
        dist.all_reduce(squares, group=part.get_grad_stats_parallel_group())
        total += squares
    return total.sqrt()


@torch.no_grad()
def clip(optimizer: Any, norm: Tensor, limit: float) -> None:
    """Scale all gradients so that their norm is at most `limit` (arXiv:1211.5063); 0 is off. Waits for nothing."""
    if limit <= 0:
        return
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    gradients = [p.grad for p in optimizer.get_parameters() if p.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))


@torch.no_grad()
def replicated_norm(model: nn.Module, layout: Layout) -> Tensor:
    """`global_norm` of gradients that every data-parallel rank holds in full, as `.grad` of the weights."""
    gradients = [
        parameter.grad
        for parameter in model.parameters()
        if parameter.grad is not None
        and (getattr(parameter, "tensor_model_parallel", False) or layout.tp_rank == 0)
    ]
    squares = torch.stack(torch._foreach_norm(gradients)).double().square().sum()
    dist.all_reduce(squares, group=layout.groups.tp)
    return squares.sqrt()
