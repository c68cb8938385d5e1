"""The engine on DeepSpeed: TP and DP with ZeRO-0, 1, 2 and 3, and with optimizer or weights on the CPU or a disk."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from megalm import progress
from megalm.config.schema import Config
from megalm.engine.base import Loss, Metrics, MicroBatch, minimised, named_figures, quotients
from megalm.engine.common import global_weight, seed_dropout
from megalm.engine.deepspeed_setup import (
    ParallelUnit,
    averages_gradients,
    build_optimizer,
    check_disk_operator,
    import_deepspeed,
    release,
    settings,
)
from megalm.engine.deepspeed_state import DeepSpeedShards, FlatState, PartitionedState
from megalm.engine.gradients import replicated_norm
from megalm.engine.parameter_groups import set_learning_rate
from megalm.model.build import Model, build_model
from megalm.model.freeze import freeze, freezes
from megalm.parallel.layout import Layout


class DeepSpeedEngine:
    """Builds the model of this rank and trains it step by step (see `engine.base.Engine`)."""

    def __init__(self, config: Config, layout: Layout, train: bool = True) -> None:
        self.deepspeed = import_deepspeed(layout.device)
        check_disk_operator(config, layout)
        self.config = config
        self.layout = layout
        self.stage = config.parallel.zero_stage
        self.steps_begun = 0
        self.unit = ParallelUnit(layout)
        self._activate()
        self.model: Model = build_model(config, layout)
        self.chunks = [self.model]
        if train:
            freeze(self.chunks, config, layout)
        self.sharded_state = DeepSpeedShards(self.model, layout, freezes(config))
        if layout.tp_size > 1:
            _sum_over_tensor_ranks(self.model, layout)
        self.runner: Any = self.model
        if train or self.stage == 3:
            self._initialize(train)

    def _initialize(self, train: bool) -> None:
        config = self.config
        self.runner, *_ = self.deepspeed.initialize(
            model=self.model,
            optimizer=build_optimizer(config, self.model, self.layout) if train else None,
            mpu=self.unit,
            config=settings(config, self.model),
        )
        weakref.finalize(self, release, self.runner).atexit = False
        if train:
            kind = PartitionedState if self.stage == 3 else FlatState
            self.optimizer_state = kind(self.runner, self.layout.groups, config.precision.dtype == "bf16")
            self.sharded_state.optimizer = self.optimizer_state

    def _activate(self) -> None:
        """Make this engine's what the libraries keep for the whole process; another engine may have set its own."""
        self.layout.activate()
        self.deepspeed.utils.groups.mpu = self.unit

    def step(self, microbatches: Sequence[MicroBatch], loss: Loss, lr: float) -> Metrics:
        """See Engine.step. The loss and the gradients are divided by the weight of the whole global batch."""
        self._activate()
        weight = global_weight(microbatches, loss, self.layout)
        seed_dropout(self.config, self.layout, self.steps_begun)
        self.steps_begun += 1
        self.runner.train()
        parts = torch.zeros_like(weight)
        for number, microbatch in enumerate(microbatches, start=1):
            progress.beat()
            is_last = number == len(microbatches)
            self.runner.set_gradient_accumulation_boundary(is_last)
            summed = loss.sum(loss.forward(self.runner, microbatch), microbatch)
            shares = quotients(summed.reshape(-1), weight)
            parts += shares.detach()
            share = shares[: minimised(loss)].sum()
            if is_last:
                dist.all_reduce(parts, group=self.layout.groups.dp)
                # DeepSpeed looks at the gradients alone: a loss that is not finite makes them so
                finite = parts[: minimised(loss)].isfinite().all()
                share = share * torch.where(finite, 1.0, torch.nan).to(share.dtype)
            if averages_gradients(self.config):
                share = share * self.layout.dp_size
            self.runner.backward(share, scale_wrt_gas=False)
        norm, skipped = self._update(lr)
        numbers = parts.tolist()
        return Metrics(
            loss=sum(numbers[: minimised(loss)]),
            grad_norm=norm,
            weight=float(weight[0]),
            skipped=skipped,
            more=named_figures(loss, numbers),
        )

    def _update(self, lr: float) -> tuple[float, bool]:
        """Clip and update unless a gradient is not finite; return (norm before clipping, whether it was skipped)."""
        set_learning_rate(self.runner.basic_optimizer, lr)
        if self.runner.optimizer is self.runner.basic_optimizer:
            return self._update_unsharded()
        self.runner.step()
        return float(self.runner.get_global_grad_norm()), not self.runner.was_step_applied()

    def _update_unsharded(self) -> tuple[float, bool]:
        """ZeRO-0 in fp32, where DeepSpeed neither tells the norm nor skips a step."""
        norm = replicated_norm(self.model, self.layout)
        skipped = not norm.isfinite()
        if skipped:
            self.runner.zero_grad()
        else:
            self.runner.step()
        return float(norm), skipped

    @torch.no_grad()
    def forward(
        self,
        microbatches: Sequence[MicroBatch],
        run: Callable[[nn.Module, MicroBatch], Tensor],
        collect: Callable[[Tensor, MicroBatch], Any],
    ) -> list[Any]:
        """See Engine.forward."""
        self._activate()
        self.runner.eval()
        outputs = []
        for microbatch in microbatches:
            progress.beat()
            outputs.append(collect(run(self.runner, microbatch), microbatch))
        return outputs

    def evaluate(
        self, microbatches: Sequence[MicroBatch], loss: Loss
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """See Engine.evaluate."""
        sums = self.forward(
            microbatches, loss.forward, lambda output, microbatch: loss.sum(output, microbatch).double()
        )
        total = torch.stack([part.reshape(-1) for part in sums]).sum(0)
        dist.all_reduce(total, group=self.layout.groups.dp)
        weight = global_weight(microbatches, loss, self.layout)
        return total.cpu().numpy(), weight.cpu().numpy()

    def gather_weights(self) -> None:
        """See Engine.gather_weights; ZeRO-3 gathers while it runs, so that there is nothing to do."""

    def weights_changed(self) -> None:
        """See Engine.weights_changed."""
        self.sharded_state.weights_changed()

    def state(self) -> dict[str, Any]:
        """See Engine.state."""
        self._activate()
        self._part_weights()
        return self.sharded_state.copy()

    def empty_state(self, stored: Mapping[str, torch.dtype], with_optimizer: bool) -> dict[str, Any]:
        """See Engine.empty_state."""
        self._activate()
        return self.sharded_state.empty(stored, with_optimizer)

    def load(self, portion: Mapping[str, Tensor]) -> None:
        """See Engine.load."""
        self._activate()
        self._part_weights()
        self.sharded_state.load(portion)

    def _part_weights(self) -> None:
        """Give up what ZeRO-3 has gathered ahead of its use."""
        if self.stage == 3:
            self.runner.empty_partition_cache()

    @property
    def counters(self) -> dict[str, float]:
        """What a checkpoint holds besides tensors: updates made (Adam's count) and steps begun."""
        return {"updates": self.optimizer_state.updates, "steps_begun": self.steps_begun}

    @counters.setter
    def counters(self, values: Mapping[str, float]) -> None:
        self.optimizer_state.updates = int(values["updates"])
        self.steps_begun = int(values["steps_begun"])


def _sum_over_tensor_ranks(model: nn.Module, layout: Layout) -> None:
    """Let each backward pass sum over the TP ranks the gradients of weights that each used on a part of the sequence or heads.

    Megatron-Core's engine does this once a step, where DeepSpeed has reduced the gradients over the other ranks already.
    """

    def summed(gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient, group=layout.groups.tp)
        return gradient

    for parameter in model.parameters():
        if parameter.requires_grad and getattr(parameter, "sequence_parallel", False):
            parameter.register_hook(summed)
