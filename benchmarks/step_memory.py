"""What each option of a training step holds in memory: bytes per rank, counted on the CPU, one row an option.

    python benchmarks/step_memory.py

Counts do not depend on the machine or on what else runs there.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megalm.config import parse_config
from megalm.testing import run_distributed

TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
BF16 = "precision.dtype=bf16"
SELECTIVE = "train.recompute.granularity=selective"
FULL = "train.recompute.granularity=full"
ONE, TWO = 1, 2
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


@dataclass
class Held:
    """Bytes on one rank."""

    activations: int
    weights: int
    gradients: int
    optimizer: int


def measure(overrides: tuple[str, ...], layers: int, hidden: int, length: int, vocabulary: int) -> Held:
    """Build an engine on this rank and count; runs on every rank of a world."""
    import torch

    from megalm.engine.activations import saved_bytes
    from megalm.engine.base import MicroBatch
    from megalm.engine.build import build_engine
    from megalm.parallel.layout import create_layout
    from megalm.train.pretrain import NextTokenLoss

    model = {"num_layers": layers, "hidden_size": hidden, "num_attention_heads": hidden // 64}
    config = parse_config(
        {
            "model": model | {"vocab_size": vocabulary, "max_sequence_length": length},
            "batch": {"seq_length": length, "micro_batch_size": 1, "global_batch_size": 2},
        },
        overrides,
    )
    engine = build_engine(config, create_layout(config.parallel))
    tokens_BS = torch.arange(length)[None] % vocabulary
    microbatch = MicroBatch(tokens_BS, tokens_BS, torch.ones(1, length))
    module, loss = engine.model.train(), NextTokenLoss()
    activations = saved_bytes(lambda: loss.forward(module, microbatch), module.parameters())
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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--length", type=int, default=1024, help="tokens of a sample; the microbatch is one")
    parser.add_argument("--vocabulary", type=int, default=32000)
    sizes = parser.parse_args()
    columns = ["activations of a microbatch", "weights", "gradients", "optimizer"]
    print("| option | " + " | ".join(f"{name}, MiB" for name in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, (world_size, overrides) in OPTIONS.items():
        ranks = run_distributed(
            measure, world_size, overrides, sizes.layers, sizes.hidden, sizes.length, sizes.vocabulary
        )
        worst = [max(getattr(rank, field) for rank in ranks) for field in Held.__dataclass_fields__]
        print(f"| {name} | " + " | ".join(f"{value / 2**20:.1f}" for value in worst) + " |", flush=True)


if __name__ == "__main__":
    from benchmarks import step_memory  # by the name under which the workers find `measure`

    step_memory.main()
