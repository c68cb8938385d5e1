"""How a step's tokens were spread over the experts, and what the routers' losses came to."""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from megalm.config.schema import Config
from megalm.engine.base import MicroBatch
from megalm.model.gpt import GPT
from megalm.model.moe import TopKRouter
from megalm.parallel.layout import Layout

NAMES = (
    "expert_load_max",
    "expert_load_min",
    "expert_load_entropy",
    "dropped_fraction",
    "aux_loss",
    "z_loss",
)


class Routing:
    """The routers of this process's parts of a model; of a model without experts it has nothing to say."""

    def __init__(self, chunks: Sequence[GPT], config: Config, layout: Layout) -> None:
        self.model = config.model
        self.core = chunks[0].config
        self.layout = layout
        modules = (module for chunk in chunks for module in chunk.modules())
        self.routers = [module for module in modules if isinstance(module, TopKRouter)]
        self.sequences = 0

    def begin_step(self, microbatches: Sequence[MicroBatch]) -> None:
        """Tell the routers how many sequences the global batch holds: every data-parallel rank holds as many."""
        self.sequences = sum(len(microbatch.tokens_BS) for microbatch in microbatches) * self.layout.dp_size
        for router in self.routers:
            router.begin_step(self.sequences, self.core.grad_scale_func)

    def figures(self) -> Tensor:
        """What `NAMES` says of the step since `begin_step`, float64, the same on every rank; empty without experts.

        expert_load_*: of each expert's share of its layer's assignments (tokens x top k), before any are dropped, the
        largest and the smallest in any layer, and the mean over layers of entropy / log(experts): 1 where the load is
        even. dropped_fraction: of all assignments. aux_loss, z_loss: means over sequences and layers, without their
        coefficients. Collective.
        """
        experts, groups, device = self.model.moe.num_experts, self.layout.groups, self.layout.device
        if not experts:
            return torch.zeros(0, dtype=torch.float64, device=device)
        sums_LX = torch.zeros(self.model.num_layers, experts + 3, dtype=torch.float64, device=device)
        for router in self.routers:
            assert router.sums is not None and router.layer_number is not None
            sums_LX[router.layer_number - 1] = router.sums
        split = self.layout.config.sequence_parallel
        dist.all_reduce(sums_LX, group=groups.tp_dp_cp if split else groups.dp_cp)
        dist.all_reduce(sums_LX, group=groups.pp)
        sums_LX = sums_LX[:: self.model.moe.layer_frequency]
        tokens_LE, dropped_L = sums_LX[:, :experts], sums_LX[:, experts]
        share_LE = tokens_LE / tokens_LE.sum(-1, keepdim=True)
        entropy = torch.special.entr(share_LE).sum(-1).mean() / math.log(max(experts, 2))
        losses = sums_LX[:, experts + 1 :].mean(0) / self.sequences
        dropped = dropped_L.sum() / tokens_LE.sum()
        return torch.cat([torch.stack([share_LE.max(), share_LE.min(), entropy, dropped]), losses])
