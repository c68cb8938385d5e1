"""What every engine does before a step: the global weight of the batch, and the seed of dropout."""

import hashlib
from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core import tensor_parallel
from torch import Tensor

from megalm.config.schema import Config
from megalm.engine.base import Loss, MicroBatch
from megalm.parallel.layout import Layout


def global_weight(microbatches: Sequence[MicroBatch], loss: Loss, layout: Layout) -> Tensor:
    """What each part of the loss of the whole global batch is divided by; float64. Collective over data-parallel ranks."""
    weight = torch.stack([loss.weight(m).reshape(-1) for m in microbatches]).sum(0, dtype=torch.float64)
    dist.all_reduce(weight, group=layout.groups.dp_cp)
    return weight


def seed_dropout(config: Config, layout: Layout, step: int) -> None:
    """Dropout is a function of (seed, step, rank): nothing to save, nothing that drifts on resume."""
    model = config.model
    if model.hidden_dropout or model.attention_dropout or (config.lora.rank and config.lora.dropout):
        # ranks that hold the same layers, but other samples or other tokens of them
        where = (config.run.seed, step, layout.groups.dp_cp.rank(), layout.pp_rank)
        digest = hashlib.blake2b(repr(where).encode(), digest_size=4).digest()
        tensor_parallel.random.initialize_rng_tracker(force_reset=True)
        # the library adds small numbers for the tensor-parallel rank
        tensor_parallel.model_parallel_cuda_manual_seed(
            int.from_bytes(digest, "little"),
            tp_rank=layout.tp_rank,
            ep_rank=layout.ep_rank,
            etp_rank=layout.groups.expt_tp.rank(),
        )
