"""Sets DeepSpeed up: imports it late and quietly, names our groups for it, chooses its settings and its optimizer."""

import inspect
import logging
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from megalm.config.schema import Config
from megalm.engine.operators import compile_operator
from megalm.engine.parameter_groups import parameter_shares, torch_groups
from megalm.errors import UserError
from megalm.parallel.layout import Layout
from megalm.quiet import quiet_output

logger = logging.getLogger(__name__)

BUCKET_ELEMENTS = 50_000_000
"""Gradients are reduced in buckets of so many at most, or of a hundredth of the model, or of the largest weight."""


def import_deepspeed(device: torch.device) -> Any:
    """The module `deepspeed`, set to compute on `device` and to leave stdout alone. UserError where it is missing."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("LOCAL_RANK", "0")
    try:
        with quiet_output():
            import deepspeed
    except ImportError as error:
        raise UserError(
            f"engine `deepspeed` needs the package deepspeed ({error}): pip install deepspeed, or take engine=megatron"
        ) from None
    deepspeed.utils.logger.handlers.clear()  # it logs to stdout
    deepspeed.utils.logger.addHandler(logging.NullHandler())
    # shared-memory collectives for inference: compiled when a process group is made, and nothing here calls them
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


class ParallelUnit:
    """Our process groups under the names that DeepSpeed looks for in Megatron's `mpu`."""

    get_model_parallel_group: Callable[[], dist.ProcessGroup]
    get_model_parallel_world_size: Callable[[], int]
    get_model_parallel_rank: Callable[[], int]
    get_tensor_model_parallel_group: Callable[[], dist.ProcessGroup]
    get_tensor_model_parallel_world_size: Callable[[], int]
    get_tensor_model_parallel_rank: Callable[[], int]
    get_data_parallel_group: Callable[[], dist.ProcessGroup]
    get_data_parallel_world_size: Callable[[], int]
    get_data_parallel_rank: Callable[[], int]

    def __init__(self, layout: Layout) -> None:
        groups = layout.groups
        for axis, group in (
            ("model", groups.tp),  # without pipelines the model lies on the TP ranks alone
            ("tensor_model", groups.tp),
            ("data", groups.dp),
        ):
            setattr(self, f"get_{axis}_parallel_group", lambda group=group: group)
            setattr(self, f"get_{axis}_parallel_world_size", group.size)
            setattr(self, f"get_{axis}_parallel_rank", group.rank)


def settings(config: Config, model: nn.Module) -> dict[str, Any]:
    """DeepSpeed's own configuration."""
    stage, precision = config.parallel.zero_stage, config.precision
    sizes = [parameter.numel() for parameter in model.parameters()]
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": max(max(sizes), min(BUCKET_ELEMENTS, sum(sizes) // 100)),
        # it would replace torch.nn.functional.linear for good
        "memory_efficient_linear": False,
        # what has one axis, norms and biases, is too small to be worth gathering
        "stage3_param_persistence_threshold": max(p.numel() for p in model.parameters() if p.dim() == 1),
    }
    for name, place in (("optimizer", config.offload.optimizer), ("param", config.offload.parameters)):
        if place != "none":
            zero[f"offload_{name}"] = {"device": place, "nvme_path": config.offload.nvme_path}
    result: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.batch.micro_batch_size,
        "gradient_clipping": config.optimizer.clip_grad,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "communication_data_type": "fp32" if precision.dtype == "fp32" else precision.grad_reduce_dtype,
    }
    if averages_gradients(config):
        result["gradient_allreduce_op"] = "mean"
    else:
        result["gradient_allreduce_op"] = "sum"
    if precision.dtype == "bf16":
        result["bf16"] = {"enabled": True, "check_grad_overflow": True}
        if stage:
            result["data_types"] = {"grad_accum_dtype": "fp32"}
    return result


def release(runner: Any) -> None:
    """Let DeepSpeed's engine be freed, with its model and groups, once nobody else holds it.

    Its hooks and the parameters hold each other where Python's collector does not look, and a list and a cache of its
    ZeRO-3 keep every model that there ever was.
    """
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    runner.destroy()
    stack = parameter_offload.FWD_MODULE_STACK
    stack[:] = [module for module in stack if module is not runner.module]
    decorated = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    inspect.getclosurevars(decorated).nonlocals["func"].cache_clear()


def averages_gradients(config: Config) -> bool:
    """Whether DeepSpeed divides gradients by the number of data-parallel ranks, which ZeRO-3 cannot be kept from."""
    return config.parallel.zero_stage == 3


def build_optimizer(config: Config, model: nn.Module, layout: Layout) -> torch.optim.Optimizer:
    """AdamW of the trained parameters: DeepSpeed's for the CPU if the state rests there and it can be compiled."""
    fields = config.optimizer
    groups = torch_groups(parameter_shares([model], config, layout))
    arguments: dict[str, Any] = {
        "lr": 0.0,  # each step sets it; in bf16 without ZeRO DeepSpeed makes an update while it is set up
        "betas": (fields.adam_beta1, fields.adam_beta2),
        "eps": fields.adam_eps,
    }
    if config.offload.optimizer != "none":
        problem = problem_of_operator("CPUAdamBuilder", layout)
        if problem is None:
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            return DeepSpeedCPUAdam(groups, **arguments)
        if layout.rank == 0:
            logger.warning("the update runs in torch's AdamW, not in DeepSpeed's CPU Adam: %s", problem)
    return torch.optim.AdamW(groups, fused=True, **arguments)


def check_disk_operator(config: Config, layout: Layout) -> None:
    """Raise UserError if something is to rest on a disk and DeepSpeed's operator for that cannot be compiled here."""
    if "nvme" not in (config.offload.optimizer, config.offload.parameters):
        return
    problem = problem_of_operator("AsyncIOBuilder", layout)
    if problem is not None:
        raise UserError(
            f"offload to nvme needs DeepSpeed's asynchronous I/O, which cannot be compiled here ({problem}): install "
            "libaio's headers (Debian and Ubuntu: apt install libaio-dev) and a C++ compiler, or offload to cpu"
        )


def problem_of_operator(name: str, layout: Layout) -> str | None:
    """Compile one of DeepSpeed's C++ operators, or take it from the cache; say what stops it on some rank. Collective."""
    problems: list[str | None] = [None] * layout.world_size
    dist.all_gather_object(problems, compile_operator(name))
    return next((text for text in problems if text), None)
