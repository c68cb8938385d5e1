"""Adds speed, share of the hardware's rate (MFU) and memory to what gets logged."""

import resource
import sys
from collections import deque

import torch

from megalm.model.spec import DTYPES
from megalm.parallel.layout import Layout
from megalm.train.callbacks.base import Callback, Run, StepRecord
from megalm.train.callbacks.device_rate import world_flops_per_second


class Throughput(Callback):
    """Fills `record.values`, as means over the last `logging.interval` steps; skipped steps have read their tokens too.

    tokens_per_second: of the whole run. step_seconds. tflops_per_device: model FLOPs (without recompute). mfu: those
    as a share of what the devices could do, see `world_flops_per_second`. memory_gb: this rank's most so far, in 10^9
    bytes: allocated by torch on CUDA, else resident. On start it adds to `run.facts`: device, device_tflops (the
    divisor of MFU, mean of the ranks), mfu_against ("peak" or "measured matmul").
    """

    def on_start(self, run: Run) -> None:
        config, layout = run.config, run.layout
        self._flops_per_token = config.model.flops_per_token(config.batch.seq_length)
        self._world_flops_per_second, against = world_flops_per_second(layout, DTYPES[config.precision.dtype])
        run.facts["device"] = device_name(layout.device)
        run.facts["device_tflops"] = self._world_flops_per_second / layout.world_size / 1e12
        run.facts["mfu_against"] = against
        if layout.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(layout.device)  # the measured matmul is no part of the run
        self._window: deque[tuple[int, float]] = deque(maxlen=config.logging.interval)

    def on_step(self, run: Run, record: StepRecord) -> None:
        self._window.append((record.tokens, record.seconds))
        tokens, seconds = (sum(column) for column in zip(*self._window, strict=True))
        flops_per_second = self._flops_per_token * tokens / seconds
        record.values |= {
            "tokens_per_second": tokens / seconds,
            "step_seconds": seconds / len(self._window),
            "tflops_per_device": flops_per_second / run.layout.world_size / 1e12,
            "mfu": flops_per_second / self._world_flops_per_second,
            "memory_gb": peak_memory_bytes(run.layout) / 1e9,
        }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads a rank"


def peak_memory_bytes(layout: Layout) -> int:
    if layout.device.type == "cuda":
        return torch.cuda.max_memory_allocated(layout.device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
