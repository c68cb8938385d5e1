"""Which AdamW Megatron-Core builds: torch's fused one, torch's list operations, or NVIDIA apex's."""

from typing import Any

import torch
from megatron.core import optimizer as megatron_optimizer
from megatron.core.optimizer import distrib_optimizer


def choose_adam(kernel: str) -> dict[str, Any]:
    """Have the library build the AdamW that `optimizer.kernel` names; return what each of its parameter groups must hold.

    Left alone, it takes Transformer Engine's or apex's where it finds one, and torch's without the fused kernel otherwise.
    """
    if kernel == "apex":
        from apex.optimizers import FusedAdam

        megatron_optimizer.USING_PYTORCH_OPTIMIZER = False
        # the sharded optimizer asserts the class under its own name
        megatron_optimizer.Adam = distrib_optimizer.Adam = FusedAdam
        return {"step": 0}
    megatron_optimizer.USING_PYTORCH_OPTIMIZER = True
    # `fused` is one pass over memory instead of a dozen
    return {"fused": kernel != "foreach", "foreach": kernel == "foreach"}


def counts_in_groups(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it counts its updates once a parameter group, as apex's does, instead of once a parameter."""
    return any("step" in group for group in optimizer.param_groups)
