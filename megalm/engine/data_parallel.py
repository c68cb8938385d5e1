"""How gradients and updated weights travel between data-parallel ranks: at once, or in buckets while the ranks compute."""

from typing import Any

import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

from megalm.config.schema import Config
from megalm.model.build import Model
from megalm.model.gpt import GPT
from megalm.parallel.layout import Layout


def overlaps_grad_reduce(config: Config, layout: Layout) -> bool:
    """Whether gradients are summed while the backward pass goes on: as configured, else on NCCL between copies."""
    parallel = config.parallel
    if parallel.overlap_grad_reduce is not None:
        return parallel.overlap_grad_reduce
    group = layout.groups.dp_cp
    return parallel.overlap_param_gather or (group.size() > 1 and dist.get_backend(group) == "nccl")


def wrap(model: Model, config: Config, layout: Layout) -> DistributedDataParallel:
    """Megatron-Core's wrapper around the model of this rank, with its buffers of gradients."""
    precision, parallel = config.precision, config.parallel
    narrow = precision.dtype in ("bf16", "fp16")
    ddp = DistributedDataParallel(
        model.config,
        DistributedDataParallelConfig(
            grad_reduce_in_fp32=narrow and precision.grad_reduce_dtype == "fp32",
            use_distributed_optimizer=parallel.zero_stage == 1,
            overlap_grad_reduce=overlaps_grad_reduce(config, layout),
            overlap_param_gather=parallel.overlap_param_gather,
            bucket_size=parallel.ddp_bucket_size,
        ),
        model,
        pg_collection=layout.groups,
    )
    if parallel.overlap_param_gather:
        # the library waits for a weight before the module that holds it runs; our head reads the output matrix itself
        layers = model.decoder if isinstance(model, GPT) else model.encoder
        layers.register_forward_hook(lambda *_: _wait_for_all(ddp))
    return ddp


def gather_weights(ddp: DistributedDataParallel) -> None:
    """Complete the gathers that the last update left to the next forward pass. Collective; does nothing where none is due."""
    if ddp.ddp_config.overlap_param_gather:
        for group in _groups(ddp):
            if not group.param_gather_dispatched or group.param_gather_handle is not None:
                group.start_param_sync(force_sync=True)


def _wait_for_all(ddp: DistributedDataParallel) -> None:
    for group in reversed(_groups(ddp)):  # the order in which the forward pass needs them
        group.finish_param_sync()


def _groups(ddp: DistributedDataParallel) -> list[Any]:
    return ddp.bucket_groups + ddp.expert_parallel_bucket_groups
