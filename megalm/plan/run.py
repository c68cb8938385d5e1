"""Plans a run: each distinct pipeline stage, whether it fits, what would make it smaller, what a step costs."""

import itertools
import time
from collections.abc import Iterator

import torch

from megalm.config import Config, data_parallel_size
from megalm.config.checks import check
from megalm.config.pipeline import bubble_fraction, layers_per_chunk, microbatches_of_step
from megalm.device_rate import PEAK_BF16_TFLOPS
from megalm.errors import UserError
from megalm.model.kernel_choice import check_kernels, problems, without_unusable
from megalm.model.names import check_names
from megalm.plan.report import GIB, Hint, Plan, StagePlan
from megalm.plan.stage import plan_stage

CPU = "cpu"
# outside torch's allocator on CUDA: context, cuBLAS, NCCL's buffers, and what its allocator cannot use; not measured
RESERVED = 4 * GIB
MFUS = (0.3, 0.4, 0.5)


def plan(
    config: Config,
    nodes: int,
    gpus_per_node: int,
    device: str = "H100",
    device_memory: int | None = None,
    hints: bool = True,
) -> Plan:
    """Plan `config` on nodes x gpus_per_node processes without using memory or a device.

    device: a name of `PEAK_BF16_TFLOPS`, or `cpu`. device_memory: bytes of one device. The process must not be part of a
    world. UserError for a layout that does not work.
    """
    begin = time.perf_counter()
    if device != CPU and device not in PEAK_BF16_TFLOPS:
        raise UserError(f"--device {device!r} is unknown (known: cpu, {', '.join(PEAK_BF16_TFLOPS)})")
    world_size = nodes * gpus_per_node
    copies = data_parallel_size(config, world_size)
    check_names(config.model)
    check_kernels(config, here=False)
    replaced = list(problems(config))
    config = without_unusable(config)  # kernels of the cluster's GPUs need not run here
    target = torch.device("cpu") if device == CPU else torch.device("cuda", 0)
    stages = [plan_stage(config, world_size, span, target) for span in _spans(config)]
    batch = config.batch
    tokens = batch.global_batch_size * batch.seq_length
    flops = config.model.flops_per_token(batch.seq_length) * tokens
    result = Plan(
        layout=stages[0].layout,
        world_size=world_size,
        device=device,
        parameters=config.model.num_parameters(),
        microbatches=microbatches_of_step(config, copies),
        tokens_per_step=tokens,
        flops_per_step=flops,
        bubble=bubble_fraction(config, copies),
        device_memory=device_memory,
        reserved=0 if device == CPU else RESERVED,
        stages=stages,
        replaced=replaced,
    )
    if hints:
        result.hints = list(_hints(config, world_size, target, result.fullest))
    if device != CPU and config.precision.dtype == "bf16":
        result.rates = [_rate(result, mfu, PEAK_BF16_TFLOPS[device] * 1e12) for mfu in MFUS]
    result.seconds = time.perf_counter() - begin
    return result


def _spans(config: Config) -> list[tuple[int, int]]:
    """Runs of stages that hold as many layers of either kind in each part; the first keeps the most microbatches and stands for all.

    The first and the last stage hold embedding and head, and stand alone.
    """
    last = config.parallel.pipeline_model_parallel_size - 1
    numbers, has_experts = iter(range(config.model.num_layers)), config.model.moe.is_moe_layer
    kinds = [
        sorted(has_experts(n) for n in itertools.islice(numbers, count)) for count in layers_per_chunk(config)
    ]
    of_stage = [kinds[stage :: last + 1] for stage in range(last + 1)]
    starts = [s for s in range(last + 1) if s in (0, 1, last) or of_stage[s] != of_stage[s - 1]]
    return list(zip(starts, [start - 1 for start in starts[1:]] + [last], strict=True))


def _hints(config: Config, world_size: int, device: torch.device, stage: StagePlan) -> Iterator[Hint]:
    """What single changes would save on the fullest stage, planned again with each; the largest first."""
    found = []
    for override, changed in _changes(config):
        try:
            check(changed)
            data_parallel_size(changed, world_size)
        except UserError:
            continue
        peak = plan_stage(changed, world_size, stage.stages, device).peak
        if peak < stage.peak:
            found.append(Hint(override, peak, stage.peak - peak))
    yield from sorted(found, key=lambda hint: hint.peak)


def _changes(config: Config) -> Iterator[tuple[str, Config]]:
    wanted = {
        "parallel.zero_stage": 1 if config.parallel.zero_stage == 0 else None,
        "parallel.sequence_parallel": True if not config.parallel.sequence_parallel else None,
        "train.recompute.granularity": "full" if config.train.recompute.granularity != "full" else None,
        "batch.micro_batch_size": 1 if config.batch.micro_batch_size > 1 else None,
        "model.cross_entropy": "fused" if config.model.cross_entropy == "plain" else None,
    }
    for key, value in wanted.items():
        if value is None:
            continue
        changed = config.model_copy(deep=True)
        section = changed
        *path, field = key.split(".")
        for name in path:
            section = getattr(section, name)
        setattr(section, field, value)
        yield f"{key}={str(value).lower() if value is True else value}", changed


def _rate(plan: Plan, mfu: float, peak: float) -> dict[str, float]:
    seconds = plan.flops_per_step / (mfu * peak * plan.world_size)
    rate = plan.tokens_per_step / seconds
    return {
        "mfu": mfu,
        "step_seconds": seconds,
        "tokens_per_second": rate,
        "tokens_per_second_per_device": rate / plan.world_size,
    }
