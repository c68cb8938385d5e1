"""What the engine `deepspeed` cannot do, and what it alone can."""

from megalm.config.schema import Config, ParallelConfig
from megalm.errors import UserError

# Axes that DeepSpeed's ZeRO knows nothing of, and why that would go wrong.
_AXES = {
    "pipeline_model_parallel_size": "its ZeRO reduces gradients after every microbatch, which a pipeline's schedule cannot have",
    "context_parallel_size": "its ZeRO would not sum gradients over the ranks that share a sequence",
    "expert_model_parallel_size": "it takes experts that are spread over ranks for its own kind of them",
}


def check_deepspeed(config: Config) -> None:
    """Raise UserError for layouts, formats and offloading that the configured engine does not offer."""
    if config.engine == "deepspeed":
        _check_layout(config)
    _check_offload(config)


def _check_layout(config: Config) -> None:
    for name, reason in _AXES.items():
        size = getattr(config.parallel, name)
        if size > 1:
            raise UserError(
                f"parallel.{name} {size}: engine `deepspeed` spreads a model over TP and data-parallel ranks alone, "
                f"because {reason}; set it to 1 or take engine=megatron"
            )
    for name in ("overlap_grad_reduce", "overlap_param_gather", "ddp_bucket_size"):
        value = getattr(config.parallel, name)
        if value != ParallelConfig.model_fields[name].default:
            raise UserError(
                f"parallel.{name} {value}: engine `deepspeed` has buckets of its own; leave it out or take engine=megatron"
            )
    if config.precision.dtype not in ("fp32", "bf16"):
        raise UserError(
            f"precision.dtype {config.precision.dtype}: engine `deepspeed` trains in fp32 and bf16 (its optimizers keep "
            "fp32 state and scale no loss here); take one of these or engine=megatron"
        )


def _check_offload(config: Config) -> None:
    offload, stage = config.offload, config.parallel.zero_stage
    chosen = {"optimizer": offload.optimizer, "parameters": offload.parameters}
    for name, place in chosen.items():
        if place == "none":
            continue
        if config.engine != "deepspeed":
            raise UserError(
                f"offload.{name} {place}: engine `{config.engine}` keeps all on the device; take engine=deepspeed"
            )
        needed = 1 if (name, place) == ("optimizer", "cpu") else 3
        if stage < needed:
            raise UserError(
                f"offload.{name} {place} needs parallel.zero_stage {needed}{' or more' * (needed < 3)}, this is {stage}"
            )
    if offload.parameters == "nvme" and config.precision.dtype == "fp32":
        raise UserError(
            "offload.parameters nvme with precision.dtype fp32: DeepSpeed would round the weights to fp16 on their way to the "
            "disk; use bf16, or offload.parameters=cpu"
        )
    if "nvme" in chosen.values() and not offload.nvme_path:
        raise UserError("offload to nvme needs offload.nvme_path, a directory on the disk to use")
