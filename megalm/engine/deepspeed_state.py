"""DeepSpeed's weights and optimizer per parameter in the weight's own shape, for checkpoints that every engine reads."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn

from megalm.engine.optimizer_state import FIRST_MOMENT, MASTER, SECOND_MOMENT, OptimizerState
from megalm.engine.sharded_state import Shard, ShardedState
from megalm.model.build import Model
from megalm.parallel.layout import Layout


class FlatState(OptimizerState):
    """The optimizer of ZeRO-0, 1 and 2; from 1 on each rank holds a slice of all parameters of a group laid end to end.

    runner: what `deepspeed.initialize` returned.
    """

    def __init__(self, runner: Any, groups: ProcessGroupCollection, has_masters: bool) -> None:
        self.adam = runner.basic_optimizer
        self.groups = groups
        self.names = (MASTER,) * has_masters + (FIRST_MOMENT, SECOND_MOMENT)
        self.sharded = runner.zero_optimization_stage() > 0
        self.masters: dict[Tensor, Tensor] = {}
        if has_masters and not self.sharded:
            optimizer = runner.optimizer
            for weights, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
                self.masters.update(zip(weights, masters, strict=True))
        self._allocate()
        self.updates = 0

    def _flats(self) -> list[Tensor]:
        """What Adam updates."""
        return [flat for group in self.adam.param_groups for flat in group["params"]]

    def _allocate(self) -> None:
        for flat in self._flats():
            self._allocate_moments(flat)

    def _allocate_moments(self, flat: Tensor) -> None:
        on_cpu = type(self.adam).__name__ == "DeepSpeedCPUAdam"  # counts in an integer
        if not self.adam.state[flat]:
            self.adam.state[flat] = {
                "step": 0 if on_cpu else torch.zeros((), dtype=torch.float32, device=flat.device),
                FIRST_MOMENT: torch.zeros_like(flat, requires_grad=False),
                SECOND_MOMENT: torch.zeros_like(flat, requires_grad=False),
            }

    def _fragment(self, parameter: nn.Parameter) -> tuple[dict[str, Tensor], slice] | None:
        if not self.sharded:
            master = self.masters.get(parameter, parameter)
            return {**self.adam.state[master], MASTER: master}, slice(0, parameter.numel())
        link = parameter._hp_mapping  # type: ignore[attr-defined]
        if link is None:
            return None
        flat = self.adam.param_groups[link.param_group_index]["params"][0]
        here, there = link.hp_fragment_address, link.lp_fragment_address
        tensors = {**self.adam.state[flat], MASTER: flat}
        mine = {
            name: tensors[name].detach().narrow(0, here.start, here.numel)
            for name in (MASTER, FIRST_MOMENT, SECOND_MOMENT)
        }
        return mine, slice(there.start, there.start + there.numel)

    @property
    def updates(self) -> int:
        """Updates made so far: Adam's step count."""
        return next((int(state["step"]) for state in self._states()), 0)

    @updates.setter
    def updates(self, value: int) -> None:
        for state in self._states():
            step = state["step"]
            state["step"] = step.fill_(value) if isinstance(step, Tensor) else value

    def _states(self) -> Iterator[dict[str, Any]]:
        for flat in self._flats():
            yield self.adam.state[flat]


class PartitionedState(FlatState):
    """The optimizer of ZeRO-3: each rank holds an equal part of every parameter, the last one padded."""

    def _flats(self) -> list[Tensor]:
        return self.runner.optimizer.fp32_partitioned_groups_flat

    def __init__(self, runner: Any, groups: ProcessGroupCollection, has_masters: bool) -> None:
        self.runner = runner
        if not has_masters:
            self._share_weights()
        super().__init__(runner, groups, has_masters)

    def _allocate(self) -> None:
        """Also of what rests on a disk, which is fetched for it and put back."""
        optimizer = self.runner.optimizer
        for number, flat in enumerate(self._flats()):
            on_disk = optimizer._swappable_optimizer_subgroup(number)
            if on_disk:
                optimizer._optimizer_states_and_gradient_swap_in(number)
            self._allocate_moments(flat)
            if on_disk:
                optimizer._optimizer_states_and_gradient_swap_out(number)

    def _share_weights(self) -> None:
        """In fp32 let Adam update the weights themselves where they rest on one device.

        DeepSpeed means to, but compares a device with its name, which always differ, and keeps a copy.
        """
        optimizer = self.runner.optimizer
        for flat, weights in zip(self._flats(), optimizer.fp16_partitioned_groups_flat, strict=True):
            if weights is not None and weights.device == flat.device and weights.numel() == flat.numel():
                flat.data = weights.data

    def gather(self, parameter: nn.Parameter, name: str, owner: int) -> Tensor | None:
        """See OptimizerState.gather."""
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        if name == MASTER:
            part = safe_get_local_fp32_param(parameter)
        else:
            part = safe_get_local_optimizer_state(parameter, name)
        parts, whole = None, None
        if self.groups.dp.rank() == owner:
            whole = part.new_empty(part.numel() * self.groups.dp.size())
            parts = list(whole.chunk(self.groups.dp.size()))
        dist.gather(part.detach(), parts, dist.get_global_rank(self.groups.dp, owner), group=self.groups.dp)
        if whole is None:
            return None
        # copied out of the padding too
        return whole[: parameter.ds_numel].view(parameter.ds_shape).to("cpu", copy=True)  # type: ignore[attr-defined]

    def write(self, parameter: nn.Parameter, name: str, whole: Tensor) -> None:
        """See OptimizerState.write."""
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        mine = whole.flatten()[size * self.groups.dp.rank() :][:size]
        part = torch.zeros(size, dtype=torch.float32)
        part[: len(mine)] = mine
        if name == MASTER:
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, name)


class DeepSpeedShards(ShardedState):
    """What a checkpoint holds of this engine. Made before DeepSpeed, whose ZeRO-3 takes the weights' shapes away."""

    def __init__(self, model: Model, layout: Layout, holes: bool = False) -> None:
        super().__init__([model], layout, optimizer=None, holes=holes)
        self.places = {
            name: replace(template, data=torch.empty_like(template.data, device="meta"))
            for name, template in super()._templates().items()
        }

    def _templates(self) -> dict[str, Shard]:
        return self.places

    @torch.no_grad()
    def weights_changed(self) -> None:
        """See ShardedState.weights_changed."""
        for parameter in self._parameters().values():
            if self.optimizer and parameter.requires_grad:
                # in fp32 too the weights that Adam updates are others than the model's
                self.optimizer.write(parameter, MASTER, parameter.detach())

    def _gather_weight(self, parameter: nn.Parameter, owner: int) -> Tensor | None:
        with gathered(parameter):
            return super()._gather_weight(parameter, owner)

    def _write_weight(self, parameter: nn.Parameter, whole: Tensor) -> None:
        with gathered(parameter, to_change=True):
            super()._write_weight(parameter, whole)
        if self.optimizer and parameter.requires_grad:
            # in fp32 too the weights that Adam updates are others than the model's
            self.optimizer.write(parameter, MASTER, whole)


def gathered(parameter: nn.Parameter, to_change: bool = False) -> AbstractContextManager[None]:
    """The whole of a weight that ZeRO-3 may have parted. Collective over data-parallel ranks."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    return GatheredParameters([parameter], modifier_rank=0 if to_change else None)
