"""What the benchmarks of a training step share: megalm's step, and contenders timed in turn beside the device's matmul rate."""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megalm.config import Config
from megalm.device_rate import matmul_flops_per_second, peak_flops_per_second
from megalm.engine.base import MicroBatch
from megalm.engine.build import build_engine
from megalm.parallel.layout import create_layout
from megalm.train.pretrain import NextTokenLoss

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LR, WEIGHT_DECAY, CLIP = 3e-4, 0.1, 1.0
Step = Callable[[torch.Tensor], float]


def megalm_step(config: Config) -> Step:
    """megalm's engine, one process."""
    layout = create_layout(config.parallel)
    engine, loss = build_engine(config, layout), NextTokenLoss()

    def step(tokens: torch.Tensor) -> float:
        tokens = tokens.to(layout.device)
        mask = torch.ones(tokens[:, 1:].shape, device=layout.device)
        return engine.step([MicroBatch(tokens[:, :-1], tokens[:, 1:], mask)], loss, LR).loss

    return step


@dataclass(frozen=True)
class Timing:
    """How to time. clock: `wall`, or `cpu` for this process's CPU seconds. The first `warmup` rounds do not count."""

    device: torch.device
    dtype: torch.dtype
    rounds: int
    warmup: int
    clock: str

    def peak(self) -> float | None:
        """The data sheet's bf16 rate, FLOP/s, where it is the yardstick: on CUDA in bf16."""
        if self.device.type != "cuda" or self.dtype != torch.bfloat16:
            return None
        return peak_flops_per_second(torch.cuda.get_device_name())


@dataclass
class Measured:
    """Seconds of each round by contender, losses of the first round, peak memory in GiB on CUDA, matmul rates in FLOP/s."""

    seconds: dict[str, list[float]]
    losses: dict[str, float] = field(default_factory=dict)
    peak_gib: dict[str, float] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)

    def median(self, name: str) -> float:
        """Seconds of a contender's step."""
        return statistics.median(self.seconds[name])

    def ratio(self, faster: str, slower: str) -> float:
        """How many times as fast: the median over rounds of neighbours' ratios, so that a drift of the machine cancels."""
        pairs = zip(self.seconds[faster], self.seconds[slower], strict=True)
        return statistics.median(b / a for a, b in pairs)


def alternate(steps: Mapping[str, Step], tokens: torch.Tensor, timing: Timing) -> Measured:
    """Run the contenders one after another, round by round, and the matmuls between the rounds.

    The peak memory of a step counts what all contenders hold: subtract what the others do.
    """
    clock = time.process_time if timing.clock == "cpu" else time.perf_counter
    measured = Measured({name: [] for name in steps})
    on_cuda = timing.device.type == "cuda"
    for number in range(timing.warmup + timing.rounds):
        for name, step in steps.items():
            if on_cuda:
                torch.cuda.reset_peak_memory_stats()
            begin = clock()
            loss = step(tokens)
            measured.losses.setdefault(name, loss)
            if on_cuda:
                torch.cuda.synchronize()
                measured.peak_gib[name] = torch.cuda.max_memory_allocated() / 2**30
            if number >= timing.warmup:
                measured.seconds[name].append(clock() - begin)
        if number >= timing.warmup:
            measured.rates.append(matmul_flops_per_second(timing.dtype, timing.device, 0.05))
    return measured


def held_gib(device: torch.device) -> float:
    """GiB that tensors on a CUDA device hold now; 0 elsewhere."""
    if device.type != "cuda":
        return 0.0
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated() / 2**30
