"""Global gradient norm and clipping."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


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
def unscale_and_clip(optimizer: Any, norm: Tensor, limit: float, scale: float = 1.0) -> None:
    """Divide all gradients by `scale`, then scale them so that their norm is at most `limit`; 0 is off.

    norm: of the divided gradients. (Clipping: arXiv:1211.5063.) Both in one pass over memory; waits for nothing.
    """
    if limit <= 0 and scale == 1:
        return
    clipping = (limit / (norm + 1e-6)).clamp(max=1.0) if limit > 0 else torch.ones_like(norm)
    gradients = [p.grad for p in optimizer.get_parameters() if p.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, (clipping / scale).to(gradients[0].dtype))
