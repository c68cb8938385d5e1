"""The engine on Megatron-Core: TP, SP, PP, CP, EP, DP and the sharded optimizer (ZeRO-1)."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from numpy.typing import NDArray
from torch import Tensor, nn

from megalm import progress
from megalm.config.schema import Config
from megalm.engine.adam import choose_adam
from megalm.engine.base import Loss, Metrics, MicroBatch, minimised, named_figures, quotients
from megalm.engine.common import global_weight, seed_dropout
from megalm.engine.data_parallel import gather_weights, wrap
from megalm.engine.gradients import global_norm, unscale_and_clip
from megalm.engine.loss_scale import LossScale
from megalm.engine.optimizer_state import OptimizerState
from megalm.engine.parameter_groups import group_overrides, parameter_shares, set_learning_rate
from megalm.engine.routing import NAMES, Routing
from megalm.engine.sharded_state import ShardedState
from megalm.model.build import Model, build_chunks
from megalm.model.freeze import freeze, freezes
from megalm.model.spec import DTYPES
from megalm.parallel.layout import Layout


class MegatronEngine:
    """Builds the model of this rank and trains it step by step (see `engine.base.Engine`)."""

    def __init__(self, config: Config, layout: Layout, train: bool = True) -> None:
        self.config = config
        self.layout = layout
        layout.activate()
        self.chunks: list[Model] = build_chunks(config, layout)
        self.model = self.chunks[0]
        self.core = self.model.config
        self.schedule = get_forward_backward_func(
            layout.pp_size, self.core.virtual_pipeline_model_parallel_size
        )
        self.communicator = P2PCommunicator(pp_group=layout.groups.pp, config=self.core)
        self.has_masters = config.precision.dtype in ("bf16", "fp16")
        self.steps_begun = 0
        self.updates = 0
        self.routing = Routing(self.chunks, config, layout)
        self.loss_scale: LossScale | None = None
        self.ddp_chunks: list[DistributedDataParallel] = []
        if train:
            self._make_trainable()
        optimizer_state = self.optimizer_state if train else None
        self.sharded_state = ShardedState(self.chunks, layout, optimizer_state, freezes(config))

    def _make_trainable(self) -> None:
        precision = self.config.precision
        freeze(self.chunks, self.config, self.layout)
        shares = parameter_shares(self.chunks, self.config, self.layout)
        self.ddp_chunks = [wrap(chunk, self.config, self.layout) for chunk in self.chunks]
        no_sync = [ddp.no_sync for ddp in self.ddp_chunks]
        self.core.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
        self.core.finalize_model_grads_func = _finalize
        self.loss_scale = LossScale(precision) if precision.dtype == "fp16" else None
        if self.loss_scale:
            self.core.grad_scale_func = self.loss_scale.scale
        optimizer = self.config.optimizer
        group_fields = choose_adam(optimizer.kernel)
        self.optimizer = get_megatron_optimizer(
            MegatronOptimizerConfig(
                optimizer="adam",
                lr=optimizer.lr,
                weight_decay=optimizer.weight_decay,
                adam_beta1=optimizer.adam_beta1,
                adam_beta2=optimizer.adam_beta2,
                adam_eps=optimizer.adam_eps,
                params_dtype=DTYPES[precision.dtype],
                # 16-bit weights with fp32 masters; `fp16` would bring the library's scaler, and a wait in each step with it
                bf16=self.has_masters,
                use_distributed_optimizer=self.config.parallel.zero_stage == 1,
            ),
            self.ddp_chunks,
            group_overrides(shares),
            use_gloo_process_groups=False,
            pg_collection=self.layout.groups,
        )
        for group in self.optimizer.param_groups:
            group.update(group_fields)
        self.optimizer_state = OptimizerState(self.optimizer, self.layout.groups, self.has_masters)

    def step(self, microbatches: Sequence[MicroBatch], loss: Loss, lr: float) -> Metrics:
        """See Engine.step. The loss and the gradients are divided by the weight of the whole global batch."""
        self.layout.activate()
        weight = global_weight(microbatches, loss, self.layout)
        self._begin_step(microbatches)
        sums = self._run(
            microbatches, self.ddp_chunks, loss.forward, functools.partial(_scaled, loss, weight), train=True
        )
        parts = self._reduce_loss(sums, weight)
        self.optimizer.prepare_grads()
        scale = self.loss_scale.value if self.loss_scale else 1.0
        norm = global_norm(self.optimizer, self.layout) / scale
        metrics = self._metrics(loss, norm, weight, parts)
        if self.loss_scale:
            metrics.more["loss_scale"] = scale
            metrics.overflow = self.loss_scale.absorbs(metrics.loss, metrics.grad_norm)
        if not metrics.skipped:
            unscale_and_clip(self.optimizer, norm, self.config.optimizer.clip_grad, scale)
            set_learning_rate(self.optimizer, lr)
            self.optimizer.step_with_ready_grads()
            self.updates += 1
        return metrics

    def _begin_step(self, microbatches: Sequence[MicroBatch]) -> None:
        """Empty the gradients and what is counted per step."""
        seed_dropout(self.config, self.layout, self.steps_begun)
        self.steps_begun += 1
        for chunk, ddp in zip(self.chunks, self.ddp_chunks, strict=True):
            chunk.train()
            ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        self.routing.begin_step(microbatches)

    def _metrics(self, loss: Loss, norm: Tensor, weight: Tensor, parts: Tensor) -> Metrics:
        """Fetch the step's figures: the one moment in a step when the host waits for the device."""
        routing = self.routing.figures()
        figures = torch.cat([norm[None], weight[:1], parts, routing])
        norm_number, weight_number, *numbers = figures.tolist()
        part_numbers, routing_numbers = numbers[: len(parts)], numbers[len(parts) :]
        loss_number = sum(part_numbers[: minimised(loss)])
        more = named_figures(loss, part_numbers)
        more |= zip(NAMES, routing_numbers, strict=False)
        return Metrics(
            loss=loss_number,
            grad_norm=norm_number,
            weight=weight_number,
            skipped=not (math.isfinite(loss_number) and math.isfinite(norm_number)),
            more=more,
        )

    @torch.no_grad()
    def forward(
        self,
        microbatches: Sequence[MicroBatch],
        run: Callable[[nn.Module, MicroBatch], Tensor],
        collect: Callable[[Tensor, MicroBatch], Any],
    ) -> list[Any]:
        """See Engine.forward."""
        self.layout.activate()
        self.gather_weights()
        for chunk in self.chunks:
            chunk.eval()

        def reduce(output: Tensor, microbatch: MicroBatch) -> tuple[Tensor, Tensor, Any]:
            return output, torch.zeros((), dtype=torch.int), collect(output, microbatch)

        # an interleaved schedule takes groups of as many microbatches as there are stages
        group = self.layout.pp_size if self.layout.vp_size > 1 else 1
        filling = [microbatches[-1]] * (-len(microbatches) % group)
        outputs = self._run([*microbatches, *filling], self.chunks, run, reduce, train=False)
        return outputs[: len(microbatches)]

    def evaluate(
        self, microbatches: Sequence[MicroBatch], loss: Loss
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """See Engine.evaluate."""
        weight = global_weight(microbatches, loss, self.layout)
        sums = self.forward(
            microbatches, loss.forward, lambda output, microbatch: loss.sum(output, microbatch).double()
        )
        return self._reduce_loss(sums, weight).cpu().numpy(), weight.cpu().numpy()

    def _run(
        self,
        microbatches: Sequence[MicroBatch],
        chunks: Sequence[nn.Module],
        run: Callable[[nn.Module, MicroBatch], Tensor],
        reduce: Callable[[Tensor, MicroBatch], Any],
        train: bool,
    ) -> list[Any]:
        """Send the microbatches through Megatron-Core's pipeline schedule."""

        def forward_step(
            batches: Iterator[MicroBatch], chunk: nn.Module
        ) -> tuple[Tensor, Callable[[Tensor], Any]]:
            microbatch = next(batches)
            progress.beat()
            return run(chunk, microbatch), lambda output: reduce(output, microbatch)

        rows, length = microbatches[0].tokens_BS.shape
        return self.schedule(
            forward_step_func=forward_step,
            data_iterator=[iter(microbatches) for _ in chunks],
            model=list(chunks),
            num_microbatches=len(microbatches),
            seq_length=length * self.layout.cp_size,  # the library divides
            micro_batch_size=rows,
            forward_only=not train,
            p2p_communicator=self.communicator,
            pg_collection=self.layout.groups,
        )

    def _reduce_loss(self, sums: list[Tensor], weight: Tensor) -> Tensor:
        """Sum over microbatches and data-parallel ranks of each part, known to every stage; float64, like `weight`."""
        total = torch.zeros_like(weight)
        if self.layout.is_last_stage:
            total += torch.stack([part.reshape(-1) for part in sums]).sum(0, dtype=torch.float64)
            dist.all_reduce(total, group=self.layout.groups.dp_cp)
        if self.layout.pp_size > 1:
            dist.broadcast(total, self.layout.last_stage_rank, group=self.layout.groups.pp)
        return total

    def weights_changed(self) -> None:
        """See Engine.weights_changed."""
        self.sharded_state.weights_changed()

    def state(self) -> dict[str, Any]:
        """See Engine.state."""
        self.layout.activate()
        self.gather_weights()
        return self.sharded_state.copy()

    def empty_state(self, stored: Mapping[str, torch.dtype], with_optimizer: bool) -> dict[str, Any]:
        """See Engine.empty_state."""
        self.layout.activate()
        return self.sharded_state.empty(stored, with_optimizer)

    def load(self, portion: Mapping[str, Tensor]) -> None:
        """See Engine.load."""
        self.layout.activate()
        self.sharded_state.load(portion)

    def gather_weights(self) -> None:
        """See Engine.gather_weights."""
        self.layout.activate()
        for ddp in self.ddp_chunks:
            gather_weights(ddp)

    @property
    def counters(self) -> dict[str, float]:
        """What a checkpoint holds besides tensors: updates made (Adam's count), steps begun, the loss scale."""
        # counted here, because a stage without anything to train has no Adam that would
        counters = {"updates": self.updates, "steps_begun": self.steps_begun}
        return counters | (self.loss_scale.counters if self.loss_scale else {})

    @counters.setter
    def counters(self, values: Mapping[str, float]) -> None:
        self.updates = int(values["updates"])
        if self.ddp_chunks:
            self.optimizer_state.updates = self.updates
        self.steps_begun = int(values["steps_begun"])
        if self.loss_scale:
            self.loss_scale.load(values)


def _finalize(model: list[Any], num_tokens: Tensor | None = None, **groups: Any) -> None:
    """Reduce gradients; they are divided by the global weight already, so the library's count stays out of it."""
    finalize_model_grads(model, None, **groups)


def _scaled(
    loss: Loss, weight: Tensor, output: Tensor, microbatch: MicroBatch
) -> tuple[Tensor, Tensor, Tensor]:
    """The schedule's (quantity to differentiate, token count, what to report)."""
    parts = quotients(loss.sum(output, microbatch).reshape(-1), weight)
    total = parts[: minimised(loss)].sum()
    return total, torch.zeros((), dtype=torch.int, device=parts.device), parts.detach()
