"""Global gradient norm and clipping."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megalm.parallel.layout import Layout


@torch.no_grad()
def global_norm(optimizer: Any, layout: Layout) -> Tensor:
    """Euclidean norm over all parameters of the model, each counted once, on every rank; scalar.

    `optimizer` is Megatron-Core's: it knows which gradients here are replicas of others. The sum runs in float64, so
    that the layout does not show in it.
    """
    groups = layout.groups
    squares = torch.zeros(2, dtype=torch.float64, device=layout.device)
    for part in optimizer.chained_optimizers:
        gradients = part.get_main_grads_for_grad_norm()
        if gradients:
            kind = int(any(group["is_expert_parallel"] for group in part.param_groups))
            squares[kind] += torch.stack(torch._foreach_norm(gradients)).double().square().sum()
    if layout.config.zero_stage:
        dist.all_reduce(squares, group=groups.intra_dist_opt)
    else:
        dist.all_reduce(squares[0], group=groups.mp)
        if layout.ep_size > 1:  # on pipeline stages that have no experts too
            dist.all_reduce(squares[1], group=groups.tp_ep_pp)
    return squares.sum().sqrt()


@torch.no_grad()
def unscale_and_clip(optimizer: Any, norm: Tensor, limit: float, scale: float = 1.0) -> None:
    """Divide all gradients by `scale`, then scale them so that their norm is at most `limit`; 0 is off.

    norm: of the divided gradients. (Clipping: arXiv:1211.5063.) Both in one pass over memory; waits for nothing.
    """
    if limit <= 0 and scale == 1:
        return
    clipping = (limit / (norm + 1e-6)).clamp(max=1.0) if limit > 0 else torch.ones_like(norm)
    parameters = (p for part in optimizer.chained_optimizers for p in part.get_parameters())
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, (clipping / scale).to(gradients[0].dtype))


@torch.no_grad()
def replicated_norm(model: nn.Module, layout: Layout) -> Tensor:
    """`global_norm` of gradients that every data-parallel rank holds in full, as `.grad` of the weights."""
    gradients = [
        parameter.grad
        for parameter in model.parameters()
        if parameter.grad is not None
        and (getattr(parameter, "tensor_model_parallel", False) or layout.tp_rank == 0)
    ]
    squares = torch.zeros((), dtype=torch.float64, device=layout.device)
    if gradients:
        squares += torch.stack(torch._foreach_norm(gradients)).double().square().sum()
    dist.all_reduce(squares, group=layout.groups.tp)
    return squares.sqrt()
