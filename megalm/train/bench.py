"""Times training steps of a configuration: speed, memory, and where the time goes."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from megalm.config import Config, data_parallel_size
from megalm.engine.base import Engine, Loss, MicroBatch, local_samples, split_samples
from megalm.engine.build import build_engine
from megalm.errors import UserError
from megalm.model.kernel_choice import check_kernels
from megalm.model.names import check_names
from megalm.model.spec import DTYPES
from megalm.parallel.layout import Layout, create_layout
from megalm.quiet import quiet_output
from megalm.train.callbacks.device_rate import world_flops_per_second
from megalm.train.callbacks.throughput import device_name, peak_memory_bytes
from megalm.train.data import TrainingData
from megalm.train.run import resolve_vocabulary, world_size
from megalm.train.tasks import task_of
from megalm.train.time_use import DATA, FORWARD, STEP, TimeUse, time_use

PROFILED_STEPS = 2


class BatchSource(Protocol):
    """Where the steps' microbatches come from."""

    def next(self) -> list[MicroBatch]:
        """This rank's microbatches of the next step."""


def main(config: Config, steps: int, warmup: int, trace: Path | None = None) -> dict[str, Any]:
    """Time `steps` training steps after `warmup` others, then profile some more; return the figures (see docs/planning.md).

    Collective; the time use and the trace are rank 0's. Nothing is saved: weights are drawn and thrown away.
    """
    check_names(config.model)
    check_kernels(config)
    config, tokenizer = resolve_vocabulary(config)
    task = task_of(config)
    if not config.data.train and config.task != "pretrain":
        raise UserError(
            f"data.train is empty: task `{config.task}` cannot be timed with random tokens; name token files"
        )
    stream = task.open_stream(config, config.data.train, tokenizer) if config.data.train else None
    data_parallel_size(config, world_size())
    layout = create_layout(config.parallel, config.run.seed)
    rate, against = world_flops_per_second(layout, DTYPES[config.precision.dtype])
    engine = build_engine(config, layout)
    data: BatchSource = TrainingData(config, layout, stream) if stream else RandomTokens(config, layout)
    bench = _Bench(engine, data, task.make_loss(config), config.optimizer.lr)
    for _ in range(warmup):
        bench.step()
    if layout.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(layout.device)
    times = [bench.step() for _ in range(steps)]
    memory = _of_all_ranks(peak_memory_bytes(layout), layout)
    use = bench.profile(trace)
    seconds = statistics.median(total for total, _ in times)
    tokens = config.batch.global_batch_size * config.batch.seq_length
    flops = config.model.flops_per_token(config.batch.seq_length) * tokens
    return {
        "layout": layout.describe(),
        "world_size": layout.world_size,
        "device": device_name(layout.device),
        "dtype": config.precision.dtype,
        "parameters": config.model.num_parameters(),
        "data": "data.train" if stream else "random tokens",
        "steps": steps,
        "warmup": warmup,
        "tokens_per_step": tokens,
        "step_seconds": seconds,
        "step_seconds_min": min(total for total, _ in times),
        "step_seconds_max": max(total for total, _ in times),
        "data_wait_seconds": statistics.median(wait for _, wait in times),
        "tokens_per_second": tokens / seconds,
        "tokens_per_second_per_device": tokens / seconds / layout.world_size,
        "tflops_per_device": flops / seconds / layout.world_size / 1e12,
        "mfu": flops / seconds / rate,
        "mfu_against": against,
        "device_tflops": rate / layout.world_size / 1e12,
        "peak_memory_bytes": memory,
        "profiled_steps": PROFILED_STEPS,
        "profiled_step_seconds": use.seconds,
        "phases": use.phases,
        "operators": use.operators,
        "top_operators": use.top,
    }


class _Bench:
    """Takes steps of one engine and times them."""

    def __init__(self, engine: Engine, data: BatchSource, loss: Loss, lr: float) -> None:
        self.engine, self.data, self.lr = engine, data, lr
        self.loss = _MarkedLoss(loss)

    def step(self) -> tuple[float, float]:
        """Return (seconds of the step, of those spent waiting for data)."""
        begin = time.perf_counter()
        with record_function(DATA):
            microbatches = self.data.next()
        waited = time.perf_counter() - begin
        self.engine.step(microbatches, self.loss, self.lr)
        if self.engine.layout.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin, waited

    def profile(self, trace: Path | None) -> TimeUse:
        """Take some more steps under torch's profiler."""
        cuda = self.engine.layout.device.type == "cuda"
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
        recorded = profile(activities=activities)
        with quiet_output():  # the profiler says that it starts and stops
            recorded.start()
        for _ in range(PROFILED_STEPS):
            with record_function(STEP):
                self.step()
        with quiet_output():
            recorded.stop()
        if trace is not None and self.engine.layout.rank == 0:
            trace.parent.mkdir(parents=True, exist_ok=True)
            recorded.export_chrome_trace(str(trace))
        return time_use(recorded.events(), cuda)


class _MarkedLoss:
    """A loss whose forward pass shows in the profile."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.parts, self.figures = loss.parts, loss.figures

    def weight(self, microbatch: MicroBatch) -> Tensor:
        """See Loss.weight."""
        return self.loss.weight(microbatch)

    def forward(self, model: nn.Module, microbatch: MicroBatch) -> Tensor:
        """See Loss.forward."""
        with record_function(FORWARD):
            return self.loss.forward(model, microbatch)

    def sum(self, output: Tensor, microbatch: MicroBatch) -> Tensor:
        """See Loss.sum."""
        with record_function(FORWARD):
            return self.loss.sum(output, microbatch)


class RandomTokens:
    """Samples of random tokens, other ones at each step; the same under every layout."""

    def __init__(self, config: Config, layout: Layout) -> None:
        self.config, self.layout = config, layout
        self.batches = self._batches()

    def next(self) -> list[MicroBatch]:
        """This rank's microbatches of the next step."""
        return split_samples(next(self.batches), self.layout, self.config.batch.micro_batch_size)

    def _batches(self) -> Iterator[SimpleNamespace]:
        batch, vocabulary = self.config.batch, self.config.model.vocab_size
        random = np.random.default_rng(self.config.run.seed)
        mine = local_samples(batch.global_batch_size, self.layout, batch.micro_batch_size)
        while True:
            window = random.integers(0, vocabulary, (batch.global_batch_size, batch.seq_length + 1))[mine]
            yield SimpleNamespace(
                tokens_BS=np.ascontiguousarray(window[:, :-1]),
                labels_BS=np.ascontiguousarray(window[:, 1:]),
                loss_mask_BS=np.ones((len(mine), batch.seq_length), np.float32),
                positions_BS=None,
                segments_BS=None,
            )


def _of_all_ranks(value: int, layout: Layout) -> list[int]:
    mine = torch.tensor([value], dtype=torch.int64, device=layout.device)
    found = [torch.empty_like(mine) for _ in range(layout.world_size)]
    dist.all_gather(found, mine)
    return [int(tensor) for tensor in found]


def render(result: dict[str, Any]) -> str:
    """The figures as text for a terminal."""
    memory = result["peak_memory_bytes"]
    against = "the device's peak" if result["mfu_against"] == "peak" else "the matmul rate measured here"
    lines = [
        f"{result['parameters'] / 1e6:,.1f} M parameters, {result['layout']}, {result['dtype']}, {result['device']}; "
        f"data: {result['data']}",
        f"step         {result['step_seconds']:.4f} s, median of {result['steps']} "
        f"({result['step_seconds_min']:.4f} to {result['step_seconds_max']:.4f}); "
        f"waiting for data {result['data_wait_seconds']:.4f} s",
        f"tokens/s     {result['tokens_per_second']:,.0f} in all, {result['tokens_per_second_per_device']:,.0f} a device",
        f"TFLOP/s      {result['tflops_per_device']:.3f} a device, {100 * result['mfu']:.1f}% MFU of "
        f"{result['device_tflops']:.3f} ({against})",
        f"peak memory  {min(memory) / 2**30:.2f} to {max(memory) / 2**30:.2f} GiB a rank",
        "",
        f"of a profiled step of rank 0 ({result['profiled_step_seconds']:.4f} s; profiling itself takes time)",
        *_shares(result["phases"], result["profiled_step_seconds"]),
        "",
        "by kind of operator",
        *_shares(result["operators"], result["profiled_step_seconds"]),
        "",
        "operators that take longest",
        *_shares(result["top_operators"], result["profiled_step_seconds"]),
    ]
    return "\n".join(lines)


def _shares(seconds: dict[str, float], whole: float) -> list[str]:
    return [f"  {name:24}{value:10.4f} s{100 * value / whole:6.1f}%" for name, value in seconds.items()]
