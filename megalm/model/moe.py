"""Mixture of experts: Megatron-Core's layer, dispatchers and experts behind a router of our own, in which no layout shows.

The library's router computes in float32, takes its losses over a microbatch of a rank, and scales them through a variable of
the whole process; its layer counts the experts' gradients TP times under tensor parallelism without sequence parallelism.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import checkpoint
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.moe_utils import apply_router_token_dropping
from megatron.core.transformer.moe.router import Router
from megatron.core.transformer.moe.shared_experts import SharedExpertMLP
from megatron.core.transformer.moe.token_dispatcher import (
    MoEAllGatherTokenDispatcher,
    MoEAlltoAllTokenDispatcher,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from torch import Tensor

from megalm.model.linear import ColumnLinear, RowLinear
from megalm.model.shared import Shared

_DISPATCHERS = {"allgather": MoEAllGatherTokenDispatcher, "alltoall": MoEAlltoAllTokenDispatcher}


def balance_loss(scores_SBE: Tensor, tokens_BE: Tensor, length: int, top_k: int) -> Tensor:
    """Load-balancing loss of each sequence, shape (B): experts x sum over experts of f x P (arXiv:2101.03961, eq. 4-6).

    scores_SBE: this rank's part of the sequences, each token's scores adding up to one. tokens_BE: how many tokens of the
    whole sequence, `length` long, go to each expert, `top_k` experts a token. f is the expert's share of the assignments and
    P its mean score, so an even load gives 1. The parts of the ranks that share a sequence add up.
    """
    share_BE = tokens_BE / (top_k * length)
    return scores_SBE.shape[2] * (share_BE * scores_SBE.sum(0) / length).sum(-1)


def z_loss(logits_SBE: Tensor, length: int) -> Tensor:
    """Mean square of log sum exp of each sequence's router logits, shape (B) (ST-MoE, arXiv:2202.08906, eq. 5).

    As in `balance_loss`, the parts of the ranks that share a sequence add up.
    """
    return logits_SBE.logsumexp(-1).square().sum(0) / length


class _WithLoss(torch.autograd.Function):
    """The first argument; going back, the second, a scalar loss, is differentiated as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        ctx.save_for_backward(torch.ones_like(loss))
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return grad, ctx.saved_tensors[0]


class TopKRouter(Router):
    """Sends each token to the experts with the highest scores; built by Megatron-Core from our spec.

    Every token of a batch counts alike in losses and statistics, also where the task's loss leaves it out: all of them load
    the experts. In a training step (`begin_step`) the losses join the gradients as
    1 / sequences x sum over sequences of (aux_loss_coeff x balance_loss + z_loss_coeff x z_loss), a layer at a time.
    """

    def __init__(self, config: Any, pg_collection: ProcessGroupCollection) -> None:
        super().__init__(config=config, pg_collection=pg_collection)
        self.moe = config.model.moe
        self.sequence_group = pg_collection.tp_cp if config.sequence_parallel else pg_collection.cp
        self.sequences = 0
        self.scale: Callable[[Tensor], Tensor] | None = None
        self.sums: Tensor | None = None
        """Since `begin_step`, this rank's tokens of each expert, dropped assignments, balance and z loss; (E + 3)."""

    def begin_step(self, sequences: int, scale: Callable[[Tensor], Tensor] | None) -> None:
        """Start the statistics anew; `sequences`: of the whole global batch; `scale`: what fp16 does to a loss."""
        self.sequences, self.scale = sequences, scale
        self.sums = torch.zeros(self.num_experts + 3, dtype=torch.float64, device=self.weight.device)

    def forward(self, hidden_SBH: Tensor, padding_mask: None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return each expert's weight for each token, zero where it does not go, and where it goes; both (S x B, E)."""
        wide = torch.float64 if hidden_SBH.dtype == torch.float64 else torch.float32
        weights_TE, map_TE = self.routing(F.linear(hidden_SBH.to(wide), self.weight.to(wide)))
        return weights_TE.to(hidden_SBH.dtype), map_TE

    def routing(self, logits_SBE: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` from the logits on; in training the losses are tied to the weights it returns."""
        gates_SBE = logits_SBE.softmax(-1) if self.moe.score_function == "softmax" else logits_SBE.sigmoid()
        chosen_SBK = gates_SBE.topk(self.moe.router_top_k, dim=-1).indices
        map_SBE = torch.zeros_like(gates_SBE, dtype=torch.bool).scatter(-1, chosen_SBK, True)
        weights_SBE = gates_SBE * map_SBE
        if self.moe.norm_topk_prob:
            weights_SBE = weights_SBE / weights_SBE.sum(-1, keepdim=True)
        weights_TE, map_TE = weights_SBE.flatten(0, 1), map_SBE.flatten(0, 1)
        if self.training and self.moe.capacity_factor is not None:
            weights_TE, map_TE = apply_router_token_dropping(
                weights_TE, map_TE, self.moe.router_top_k, self.moe.capacity_factor
            )
        # recomputed layers run twice, first without gradients
        if self.training and self.sequences and torch.is_grad_enabled():
            dropped = map_SBE.sum() - map_TE.sum()
            weights_TE = _WithLoss.apply(weights_TE, self._losses(logits_SBE, gates_SBE, map_SBE, dropped))
        return weights_TE, map_TE

    def _losses(self, logits_SBE: Tensor, gates_SBE: Tensor, map_SBE: Tensor, dropped: Tensor) -> Tensor:
        """This rank's part of the losses, a scalar, scaled as the main loss is; adds to the statistics."""
        ranks = self.sequence_group.size()
        rows, length = logits_SBE.shape[1], logits_SBE.shape[0] * ranks
        tokens_BE = map_SBE.sum(0).to(logits_SBE.dtype)
        mine_E = tokens_BE.sum(0).double()
        scores_SBE = gates_SBE / gates_SBE.sum(-1, keepdim=True)
        z = z_loss(logits_SBE, length).sum()
        if self.moe.aux_loss == "batch":
            tokens_BE, scores_SBE = tokens_BE.sum(0, keepdim=True), scores_SBE.flatten(0, 1)[:, None]
            length *= rows
        if ranks > 1:
            dist.all_reduce(tokens_BE, group=self.sequence_group)
        balance = balance_loss(scores_SBE, tokens_BE, length, self.moe.router_top_k).mean() * rows
        assert self.sums is not None
        others = torch.stack([dropped.double(), balance.detach().double(), z.detach().double()])
        self.sums += torch.cat([mine_E, others])
        coeff = self.moe.aux_loss_coeff if self.moe.aux_loss != "none" else 0.0
        total = (coeff * balance + self.moe.z_loss_coeff * z) / self.sequences
        return total if self.scale is None else self.scale(total)


class MoE(MoELayer):
    """A layer of experts; the router, and tensor parallelism without sequence parallelism, are ours."""

    def __init__(self, config: Any, pg_collection: ProcessGroupCollection) -> None:
        linears = MLPSubmodules(linear_fc1=ColumnLinear, linear_fc2=RowLinear)
        submodules = MoESubmodules(
            experts=ModuleSpec(module=SequentialMLP, submodules=linears),
            shared_experts=ModuleSpec(module=SharedExpertMLP, submodules=linears),
            router=TopKRouter,
        )
        super().__init__(config, submodules, pg_collection=pg_collection)
        self.replicas_group = None
        if pg_collection.tp.size() > 1 and not config.sequence_parallel:
            # all tensor-parallel ranks hold the same tokens: nothing to gather, each adds its part of every expert's output
            self.replicas_group = pg_collection.tp
            groups = copy.copy(pg_collection)
            groups.expt_tp, groups.tp_ep = None, pg_collection.ep
            self.token_dispatcher = _DISPATCHERS[config.moe_token_dispatcher_type](
                self.num_local_experts, self.local_expert_indices, config=config, pg_collection=groups
            )

    def forward(  # type: ignore[override]
        self, hidden_SBH: Tensor, intermediate_tensors: None = None, padding_mask: None = None
    ) -> tuple[Tensor, None]:
        """Return the weighted sum of each token's experts, plus the shared expert, (S, B, H); and no bias."""
        if self.moe_layer_recompute and self.training:
            return checkpoint(self._mix, False, hidden_SBH), None
        return self._mix(hidden_SBH), None

    def _mix(self, hidden_SBH: Tensor) -> Tensor:
        shared_SBH = self.shared_experts_compute(hidden_SBH)
        weights_TE, map_TE = self.route(hidden_SBH)
        if self.replicas_group is not None:
            hidden_SBH = Shared.apply(hidden_SBH, self.replicas_group)
            weights_TE = Shared.apply(weights_TE, self.replicas_group)
        tokens, weights = self.dispatch(*self.preprocess(hidden_SBH, weights_TE, map_TE))
        output, _ = self.routed_experts_compute(tokens, weights)
        output_SBH = self.postprocess(self.combine(output), None)
        _forget_graph(self.token_dispatcher)
        if self.replicas_group is not None:
            output_SBH = reduce_from_tensor_model_parallel_region(output_SBH, group=self.replicas_group)
        return output_SBH if shared_SBH is None else output_SBH + shared_SBH


def _forget_graph(dispatcher: Any) -> None:
    """Drop what the library's dispatcher still holds of this pass: through it the graph would keep the whole model alive."""
    for name, value in vars(dispatcher).items():
        if isinstance(value, Tensor) and value.grad_fn is not None:
            setattr(dispatcher, name, None)


def moe_module(pg_collection: ProcessGroupCollection) -> type[MoE]:
    """A class of `MoE` on these groups, for a layer's spec: the library hands them to its own class alone."""

    class MoEOnGroups(MoE):
        def __init__(self, config: Any) -> None:
            super().__init__(config, pg_collection)

    return MoEOnGroups
