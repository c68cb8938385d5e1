"""A tensor that all ranks of a group hold alike and each uses for a part of the work, and one that each holds a part of."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Shared(torch.autograd.Function):
    """The first argument, of which each rank of the group uses a part: going back, the gradients are summed.

    The library's own leaves a gradient that is not contiguous as it is, unsummed (`mappings._reduce`).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


class SumOverRanks(torch.autograd.Function):
    """Sum over a group's ranks, each of which computes its own loss of it: so is the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.clone()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None
