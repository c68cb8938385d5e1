"""The optimizer's tensors per parameter in the weight's own shape, whatever the sharding underneath.

Megatron-Core's own optimizer checkpoints either fix the layout or lose data (several buckets with padding); this view is
what our checkpoints hold.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn

from megalm.engine.adam import counts_in_groups

MASTER, FIRST_MOMENT, SECOND_MOMENT = "master", "exp_avg", "exp_avg_sq"


def replicas(parameter: Tensor, groups: ProcessGroupCollection) -> dist.ProcessGroup:
    """The ranks that hold copies of this rank's part of a parameter: experts have fewer where they are shared out (EP)."""
    shared_out = not getattr(parameter, "allreduce", True)
    return groups.expt_dp if shared_out else groups.dp_cp


class OptimizerState:
    """Reads and writes (master weight, first moment, second moment) of one parameter at a time.

    optimizer: what Megatron-Core's `get_megatron_optimizer` returned. All calls are collective over the parameter's
    `replicas`, which are the ranks that a DistributedOptimizer shards over.
    """

    def __init__(self, optimizer: Any, groups: ProcessGroupCollection, has_masters: bool) -> None:
        # the library leaves the place of the optimizer of experts' or of other weights empty if they are all frozen
        self.parts = [part for part in optimizer.chained_optimizers if part.optimizer is not None]
        self.groups = groups
        self.names = (MASTER,) * has_masters + (FIRST_MOMENT, SECOND_MOMENT)
        self.sharded = any(hasattr(part, "_get_model_param_range_map") for part in self.parts)
        self._allocate()

    def _allocate(self) -> None:
        """Make the moments exist (zero) before anything is read or written."""
        for part in self.parts:
            for group in part.optimizer.param_groups:
                for parameter in group["params"]:
                    state = part.optimizer.state[parameter]
                    if "exp_avg" in state:
                        continue
                    if not counts_in_groups(part.optimizer):
                        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)

    def _fragment(self, parameter: nn.Parameter) -> tuple[dict[str, Tensor], slice] | None:
        """This rank's flat tensors of the parameter and where they lie in it; None if it holds none."""
        for part in self.parts:
            if self.sharded:
                try:
                    span = part._get_model_param_range_map(parameter)["param"]
                except KeyError:
                    continue
                tensors = part._get_main_param_and_optimizer_states(parameter)
                return {**tensors, MASTER: tensors["param"]}, slice(span.start, span.end)
            master = getattr(parameter, "main_param", parameter)
            if master in part.optimizer.state:
                return {**part.optimizer.state[master], MASTER: master}, slice(0, parameter.numel())
        return None

    def gather(self, parameter: nn.Parameter, name: str, owner: int) -> Tensor | None:
        """A copy on the CPU of the whole tensor `name` on rank `owner` of the replicas, None on the others.

        It is shaped like the parameter and in the optimizer's precision (fp32 or fp64).
        """
        group, fragment = replicas(parameter, self.groups), self._fragment(parameter)
        mine = group.rank() == owner
        if not self.sharded:
            assert fragment is not None
            return fragment[0][name].detach().to("cpu", copy=True).view(parameter.shape) if mine else None
        # the parts of all ranks add up; even a rank that holds the whole parameter takes part
        whole = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
        if fragment is not None:
            whole[fragment[1]] = fragment[0][name].detach().flatten()
        dist.reduce(whole, dist.get_global_rank(group, owner), group=group)
        return whole.cpu().view(parameter.shape) if mine else None

    def write(self, parameter: nn.Parameter, name: str, whole: Tensor) -> None:
        """Take this rank's part out of the whole tensor."""
        fragment = self._fragment(parameter)
        if fragment is not None:
            fragment[0][name].data.view(-1).copy_(whole.flatten()[fragment[1]])

    @property
    def updates(self) -> int:
        """Updates made so far: Adam's step count."""
        return next((int(place["step"]) for place in self._counts()), 0)

    @updates.setter
    def updates(self, value: int) -> None:
        for place in self._counts():
            if isinstance(place["step"], Tensor):
                place["step"].fill_(value)
            else:
                place["step"] = value

    def _counts(self) -> Iterator[dict[str, Any]]:
        """Where the optimizers count their updates: the state of each parameter, or its group."""
        for part in self.parts:
            in_groups = counts_in_groups(part.optimizer)
            yield from part.optimizer.param_groups if in_groups else part.optimizer.state.values()
