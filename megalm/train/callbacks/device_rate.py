"""How many floating-point operations a second the devices of a run could do: the divisor of MFU."""

from collections.abc import Callable

import torch
import torch.distributed as dist

from megalm.device_rate import matmul_flops_per_second, peak_flops_per_second
from megalm.parallel.layout import Layout

WINDOWS = 3  # the best of so many measurements stands


def world_flops_per_second(layout: Layout, dtype: torch.dtype) -> tuple[float, str]:
    """What all ranks together could do, in FLOP/s, and where that is from: "peak" or "measured matmul".

    Every rank calls it. "peak" is the data sheets' bf16 figure, for bf16 runs on devices that are all known. Any other
    run is held against matmuls in its own dtype, on all ranks at the same time and summed: ranks on one machine share
    its cores, memory and clock, and a rank that measured alone would count them as its own.
    """
    peak = None
    if layout.device.type == "cuda" and dtype == torch.bfloat16:
        peak = peak_flops_per_second(torch.cuda.get_device_name(layout.device))
    if _reduce(layout, peak or 0.0, dist.ReduceOp.MIN) > 0:
        return _reduce(layout, peak or 0.0, dist.ReduceOp.SUM), "peak"
    return best_of_world(layout, lambda: matmul_flops_per_second(dtype, layout.device)), "measured matmul"


def best_of_world(layout: Layout, measure: Callable[[], float]) -> float:
    """The best of some sums over all ranks of what `measure` returns when all call it at the same time."""
    # The reduction behind each call is the barrier before the next. The first call warms up and is not counted.
    sums = [_reduce(layout, measure(), dist.ReduceOp.SUM) for _ in range(1 + WINDOWS)]
    return max(sums[1:])


def _reduce(layout: Layout, value: float, operation: dist.ReduceOp.RedOpType) -> float:
    tensor = torch.tensor(value, dtype=torch.float64, device=layout.device)
    dist.all_reduce(tensor, op=operation)
    return float(tensor.item())
