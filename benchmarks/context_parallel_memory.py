#!/usr/bin/env python3
"""Trains one step on a long sequence with 1, 2 and 4 context-parallel ranks and prints what each rank's activations take.

    OMP_NUM_THREADS=1 python benchmarks/context_parallel_memory.py [--seq-length 8192] [--seq-length 16384] [--json]

Runs on CPUs (gloo). A short step comes first, so that weights, gradients and optimizer state are there already; of the long step
it prints, as the largest of all ranks, the peak of the bytes of live tensors that its operations made, and of the resident
memory of the process (Linux), both as the growth over what was there before.
"""

import argparse
import json
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megalm.testing import run_distributed

VOCABULARY, SHORT = 512, 64
MIB = 2**20


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, from an operation's end until the tensor's memory is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation; what it was given and nobody has counted was there before."""
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self.known.add(tensor.untyped_storage()._cdata)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.known:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        self.known.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.now -= size


def resident_peak(reset: bool = False) -> int:
    """Largest resident memory of this process in bytes since the last reset; 0 where the system does not tell."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def measure_rank(ranks: int, length: int, layers: int, hidden: int) -> dict[str, float]:
    """One rank's figures: bytes of its step's tensors and growth of its resident memory at their peaks, and the loss."""
    from types import SimpleNamespace

    import numpy as np

    from megalm.config import parse_config
    from megalm.engine.base import split_samples
    from megalm.engine.build import build_engine
    from megalm.parallel.layout import create_layout
    from megalm.train.pretrain import NextTokenLoss

    model = {"num_layers": layers, "hidden_size": hidden, "num_attention_heads": 4, "num_query_groups": 2}
    config = parse_config(
        {
            "model": model | {"vocab_size": VOCABULARY, "max_sequence_length": length},
            "batch": {"seq_length": length, "micro_batch_size": 1, "global_batch_size": 1},
            "parallel": {"context_parallel_size": ranks},
        }
    )
    engine = build_engine(config, create_layout(config.parallel))

    def step(tokens: int) -> float:
        window = np.random.default_rng(0).integers(0, VOCABULARY, (1, tokens + 1))
        mask = np.ones((1, tokens), np.float32)
        batch = SimpleNamespace(
            tokens_BS=window[:, :-1], labels_BS=window[:, 1:], loss_mask_BS=mask, segments_BS=None
        )
        return engine.step(split_samples(batch, engine.layout, 1), NextTokenLoss(), 1e-4).loss

    step(SHORT)
    before = resident_peak(reset=True)
    with LiveBytes() as live:
        loss = step(length)
    return {"tensors": live.peak, "resident": resident_peak() - before, "loss": loss}


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each length and number of ranks."""
    from benchmarks.context_parallel_memory import measure_rank  # travels to the ranks by this name

    rows = []
    for length in arguments.seq_length or [8192, 16384]:
        for ranks in (1, 2, 4):
            found = run_distributed(measure_rank, ranks, ranks, length, arguments.layers, arguments.hidden)
            rows.append(
                {
                    "seq_length": length,
                    "context_parallel_size": ranks,
                    "tensor_bytes": max(rank["tensors"] for rank in found),
                    "resident_bytes": max(rank["resident"] for rank in found),
                    "loss": found[0]["loss"],
                }
            )
    return rows


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seq-length", type=int, action="append", help="repeatable; default 8192 and 16384")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    rows = measure(arguments)
    if arguments.json:
        print(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1))
        return
    print("seq_length  CP  tokens/rank  tensors MiB/rank  of CP 1  resident MiB/rank  loss")
    for row in rows:
        ranks, length = row["context_parallel_size"], row["seq_length"]
        alone = next(other for other in rows if other["seq_length"] == length)
        print(
            f"{length:10}{ranks:4}{length // ranks:13}{row['tensor_bytes'] / MIB:18.1f}"
            f"{row['tensor_bytes'] / alone['tensor_bytes']:9.0%}{row['resident_bytes'] / MIB:19.1f}  {row['loss']:.6f}"
        )


if __name__ == "__main__":
    main()
