"""What each option of a training step costs and saves: bytes on a rank, and the time of a step against the base's.

    python benchmarks/options.py                 # bytes alone: counted, the same on every machine
    python benchmarks/options.py --rounds 7      # and times: steps of option and base in turn, on a quiet machine

An option is compared with the first row of as many processes as it has.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megalm.config import parse_config
from megalm.testing import run_distributed

if TYPE_CHECKING:
    from megalm.engine.base import MicroBatch
    from megalm.engine.megatron import MegatronEngine

TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
BF16 = "precision.dtype=bf16"
SELECTIVE = "train.recompute.granularity=selective"
FULL = "train.recompute.granularity=full"
ONE, TWO = 1, 2
BATCH = 4
OPTIONS: dict[str, tuple[int, tuple[str, ...]]] = {
    "base: bf16, one process": (ONE, (BF16,)),
    "fp32": (ONE, ("precision.dtype=fp32",)),
    "grad_reduce_dtype bf16": (ONE, (BF16, "precision.grad_reduce_dtype=bf16")),
    "cross_entropy plain": (ONE, (BF16, "model.cross_entropy=plain")),
    "attention matmul": (ONE, (BF16, "model.attention=matmul")),
    "attention matmul, recompute core_attn": (ONE, (BF16, "model.attention=matmul", SELECTIVE)),
    "recompute core_attn": (ONE, (BF16, SELECTIVE)),
    "recompute layernorm": (ONE, (BF16, SELECTIVE, "train.recompute.modules=[layernorm]")),
    "recompute mlp": (ONE, (BF16, SELECTIVE, "train.recompute.modules=[mlp]")),
    "recompute layernorm, mlp": (ONE, (BF16, SELECTIVE, "train.recompute.modules=[layernorm,mlp]")),
    "recompute full": (ONE, (BF16, FULL)),
    "recompute full, uniform, 2 layers": (ONE, (BF16, FULL, "train.recompute.num_layers=2")),
    "recompute full, block, 2 layers": (
        ONE,
        (BF16, FULL, "train.recompute.method=block", "train.recompute.num_layers=2"),
    ),
    "DP 2": (TWO, (BF16,)),
    "DP 2, ZeRO-1": (TWO, (BF16, "parallel.zero_stage=1")),
    "DP 2, ZeRO-1, overlap": (TWO, (BF16, "parallel.zero_stage=1", "parallel.overlap_param_gather=true")),
    "TP 2": (TWO, (BF16, TP2)),
    "TP 2, SP": (TWO, (BF16, TP2, SP)),
}


@dataclass(frozen=True)
class Sizes:
    """Of the model and of its samples; a step takes BATCH of them, a microbatch one."""

    layers: int
    hidden: int
    length: int
    vocabulary: int


@dataclass
class Held:
    """Bytes on one rank."""

    activations: int
    weights: int
    gradients: int
    optimizer: int


def build(overrides: tuple[str, ...], sizes: Sizes) -> "MegatronEngine":
    """The engine of this rank."""
    from megalm.engine.build import build_engine
    from megalm.parallel.layout import create_layout

    model = {"num_layers": sizes.layers, "hidden_size": sizes.hidden}
    model |= {"num_attention_heads": sizes.hidden // 64, "vocab_size": sizes.vocabulary}
    batch = {"seq_length": sizes.length, "micro_batch_size": 1, "global_batch_size": BATCH}
    sections = {"model": model | {"max_sequence_length": sizes.length}, "batch": batch}
    config = parse_config(sections, overrides)
    return build_engine(config, create_layout(config.parallel))


def microbatch(sizes: Sizes) -> "MicroBatch":
    """One sample."""
    import torch

    from megalm.engine.base import MicroBatch

    tokens_BS = torch.arange(sizes.length)[None] % sizes.vocabulary
    return MicroBatch(tokens_BS, tokens_BS, torch.ones(1, sizes.length))


def count(overrides: tuple[str, ...], sizes: Sizes) -> Held:
    """Build an engine on this rank and count; runs on every rank of a world."""
    from megalm.engine.activations import saved_bytes
    from megalm.train.pretrain import NextTokenLoss

    engine = build(overrides, sizes)
    module, sample, loss = engine.model.train(), microbatch(sizes), NextTokenLoss()
    activations = saved_bytes(lambda: loss.forward(module, sample), module.parameters())
    buffers = [buffer for ddp in engine.ddp_chunks for buffer in ddp.buffers]
    states = [state for part in engine.optimizer_state.parts for state in part.optimizer.state.items()]
    masters = [master for master, _ in states if engine.has_masters]
    moments = [state[name] for _, state in states for name in ("exp_avg", "exp_avg_sq")]
    return Held(
        activations=activations,
        weights=sum(parameter.nbytes for parameter in module.parameters()),
        gradients=sum(buffer.grad_data.nbytes for buffer in buffers),
        optimizer=sum(tensor.nbytes for tensor in masters + moments),
    )


def time_against(
    base: tuple[str, ...], overrides: tuple[str, ...], sizes: Sizes, rounds: int
) -> tuple[float, float]:
    """Median seconds of the option's steps, and their ratio to the base's, timed in turn; one round before does not count."""
    import torch.distributed as dist

    from megalm.train.pretrain import NextTokenLoss

    engines = build(base, sizes), build(overrides, sizes)
    microbatches = [microbatch(sizes)] * (BATCH // engines[0].layout.dp_size)
    loss, seconds = NextTokenLoss(), ([], [])
    for _ in range(rounds + 1):
        for engine, times in zip(engines, seconds, strict=True):
            dist.barrier()
            start = time.perf_counter()
            engine.step(microbatches, loss, 1e-4)
            times.append(time.perf_counter() - start)
    of_base, of_option = (times[1:] for times in seconds)
    ratios = [mine / its for its, mine in zip(of_base, of_option, strict=True)]
    return statistics.median(of_option), statistics.median(ratios)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--length", type=int, default=1024, help="tokens of a sample")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--rounds", type=int, default=0, help="steps of each to time; 0: count bytes alone")
    arguments = parser.parse_args()
    sizes = Sizes(arguments.layers, arguments.hidden, arguments.length, arguments.vocabulary)
    columns = [
        f"{name}, MiB" for name in ("activations of a microbatch", "weights", "gradients", "optimizer")
    ]
    columns += ["step, s", "against the base"] if arguments.rounds else []
    print("| option | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    bases: dict[int, tuple[str, ...]] = {}
    for name, (world_size, overrides) in OPTIONS.items():
        ranks = run_distributed(count, world_size, overrides, sizes)
        cells = [
            f"{max(getattr(rank, field) for rank in ranks) / 2**20:.1f}"
            for field in Held.__dataclass_fields__
        ]
        base = bases.setdefault(world_size, overrides)
        if arguments.rounds:
            seconds, ratio = run_distributed(
                time_against, world_size, base, overrides, sizes, arguments.rounds
            )[0]
            cells += [f"{seconds:.2f}", f"{ratio:.2f}"]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    from benchmarks import options  # by the name under which the workers find its functions

    options.main()
