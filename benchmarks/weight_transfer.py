"""How long the weights of a model take from one layout to another, beside handing every rank the whole of each tensor.

Four processes of one machine, gloo. `planned` is `megalm.engine.transfer.WeightTransfer.run`; `plan` is making it, once;
`gathered` has each tensor's holder send all of it to all ranks, a tensor at a time, of which each takes its part.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from torch import Tensor

from megalm.testing import run_distributed

TP2, PP2 = "parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"
WAYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "TP2xDP2 -> DP4": ((TP2,), ()),
    "PP2xDP2 -> TP2xDP2": ((PP2,), (TP2,)),
    "TP2xPP2 -> TP2xDP2": ((TP2, PP2), (TP2,)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    from benchmarks.weight_transfer import measure  # by this name the processes find it

    print("| way | weights, MB | received by a rank, MB | plan, s | planned, s | gathered, s |")
    print("|---|---|---|---|---|---|")
    for name, (source, target) in WAYS.items():
        found = run_distributed(measure, 4, source, target, options.hidden, options.layers, options.repeats)
        whole, received, plan, planned, gathered = map(max, zip(*found, strict=True))
        print(
            f"| {name} | {whole / 1e6:.0f} | {received / 1e6:.0f} | {plan:.2f} | {planned:.3f} | {gathered:.3f} |"
        )


def measure(
    source: tuple[str, ...], target: tuple[str, ...], hidden: int, layers: int, repeats: int
) -> tuple[float, ...]:
    """Bytes of the model, bytes that this rank receives, and medians of seconds."""
    from megalm.config import parse_config
    from megalm.engine.build import build_engine
    from megalm.engine.transfer import WeightTransfer
    from megalm.parallel.layout import create_layout

    def build(seed: int, overrides: tuple[str, ...]) -> Any:
        model = {
            "preset": "llama-tiny",
            "hidden_size": hidden,
            "ffn_hidden_size": 4 * hidden,
            "num_layers": layers,
        }
        config = parse_config({"model": {**model, "vocab_size": 32000}, "run": {"seed": seed}}, overrides)
        return build_engine(config, create_layout(config.parallel), train=False)

    engines = build(1, source), build(2, target)
    begin = time.perf_counter()
    way = WeightTransfer(*engines)
    plan = time.perf_counter() - begin
    received = sum(received for received, _ in way.traffic)
    planned = [timed(way.run) for _ in range(repeats)]
    whole = Gathered(*engines)
    gathered = [timed(whole.run) for _ in range(repeats)]
    return whole.bytes, received, plan, median(planned), median(gathered)


def timed(run: Any) -> float:
    dist.barrier()
    begin = time.perf_counter()
    run()
    dist.barrier()
    return time.perf_counter() - begin


class Gathered:
    """The simple way: each distinct part of the source is broadcast, and each rank copies what it holds of the target."""

    def __init__(self, source: Any, target: Any) -> None:
        from megalm.engine.held import held_by

        self.mine, self.wanted = held_by(source), held_by(target)
        described: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(described, [(held.name, held.box) for held in self.mine])
        self.senders: dict[Any, int] = {}
        for rank, parts in enumerate(described):
            for part in parts:
                self.senders.setdefault(part, rank)
        self.bytes = sum(4 * torch.Size(box.size).numel() for _, box in self.senders)

    @torch.no_grad()
    def run(self) -> None:
        here = {(held.name, held.box): held for held in self.mine}
        for (name, box), sender in sorted(self.senders.items()):
            values: Tensor = torch.empty(box.size)
            if sender == dist.get_rank():
                held = here[name, box]
                values.copy_(held.of(held.parameter.detach()))
            dist.broadcast(values, sender)
            for held in self.wanted:
                common = box.intersect(held.box) if held.name == name else None
                if common is not None:
                    place = held.of(held.parameter.detach())[common.within(held.box)]
                    place.copy_(values[common.within(box)])


if __name__ == "__main__":
    main()
