#!/usr/bin/env python3
"""Times one training step of a GPT beside nanoGPT's model and Hugging Face's GPT-2 of equal size, alternating in one run.

Every contender does the whole step: forward, loss, backward, gradient norm and clipping, AdamW. bf16 means bf16 matmuls with
fp32 master weights: autocast for the peers, bf16 weights beside fp32 masters for megalm. The yardstick is the machine's own
rate of square matmuls (1024^3 on a CPU, 8192^3 on CUDA) in the same number format, measured between the rounds.

    python benchmarks/train_step.py [--dtype bf16] [--nanogpt /path/to/nanoGPT/model.py] [--profile]

nanoGPT is not a package: `--nanogpt` names its model.py in a clone; without it that contender is left out. Prints medians and
ratios, and with --json one object; FLOPs of a token are 6 N + 12 L S H (N without the position table; tied embeddings).
"""

import argparse
import contextlib
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megalm.config import Config, parse_config
from megalm.device_rate import matmul_flops_per_second
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


def torch_step(model: torch.nn.Module, loss_of: Callable[[torch.Tensor], torch.Tensor], dtype: str) -> Step:
    """A plain torch training step around a peer's model."""
    device = next(model.parameters()).device
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), fused=True)

    def step(tokens: torch.Tensor) -> float:
        mixed = torch.autocast(device.type, torch.bfloat16) if dtype == "bf16" else contextlib.nullcontext()
        with mixed:
            loss = loss_of(tokens.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss)

    return step


def nanogpt_step(path: Path, config: Config, device: torch.device) -> Step:
    """nanoGPT's model from the user's clone."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    size = config.model
    with contextlib.redirect_stdout(sys.stderr):
        model = module.GPT(
            module.GPTConfig(
                block_size=size.max_sequence_length,
                vocab_size=size.vocab_size,
                n_layer=size.num_layers,
                n_head=size.num_attention_heads,
                n_embd=size.hidden_size,
                dropout=0.0,
                bias=True,
            )
        ).to(device)
    return torch_step(model, lambda t: model(t[:, :-1], t[:, 1:].contiguous())[1], config.precision.dtype)


def hugging_face_step(config: Config, device: torch.device) -> Step:
    """Hugging Face's GPT-2 with torch's attention kernel."""
    from transformers import GPT2Config, GPT2LMHeadModel

    size = config.model
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=size.vocab_size,
            n_positions=size.max_sequence_length,
            n_embd=size.hidden_size,
            n_layer=size.num_layers,
            n_head=size.num_attention_heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            attn_implementation="sdpa",
        )
    ).to(device)

    def loss_of(tokens: torch.Tensor) -> torch.Tensor:
        logits = model(tokens[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    return torch_step(model, loss_of, config.precision.dtype)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Alternate the contenders round by round and return medians, ratios and shares of the matmul rate."""
    config = parse_config(
        {
            "model": {"preset": arguments.preset, "vocab_size": arguments.vocab_size},
            "precision": {"dtype": arguments.dtype},
            "batch": {
                "seq_length": arguments.seq_length,
                "micro_batch_size": arguments.batch_size,
                "global_batch_size": arguments.batch_size,
            },
            "optimizer": {"lr": LR, "weight_decay": WEIGHT_DECAY, "clip_grad": CLIP},
        },
        arguments.override,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps: dict[str, Step] = {"megalm": megalm_step(config)}
    if arguments.nanogpt:
        steps["nanogpt"] = nanogpt_step(arguments.nanogpt, config, device)
    steps["hugging_face"] = hugging_face_step(config, device)

    shape = (arguments.batch_size, arguments.seq_length + 1)
    tokens = torch.randint(0, arguments.vocab_size, shape, generator=torch.Generator().manual_seed(1))
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    rates: list[float] = []
    for round_number in range(arguments.warmup + arguments.rounds):
        for name, step in steps.items():
            begin = clock()
            step(tokens)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_number >= arguments.warmup:
                seconds[name].append(clock() - begin)
        rates.append(matmul_flops_per_second(DTYPES[arguments.dtype], device, 0.05))

    count, rate = tokens[:, 1:].numel(), statistics.median(rates)
    flops = count * config.model.flops_per_token(arguments.seq_length)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    result: dict[str, Any] = {
        "parameters": config.model.num_parameters(),
        "dtype": arguments.dtype,
        "clock": arguments.clock,
        "tokens": count,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "matmul_gflops": rate / 1e9,
        "contenders": {
            name: {
                "tokens_per_second": count / value,
                "share_of_matmul_rate": flops / value / rate,
                "fastest_tokens_per_second": count / min(seconds[name]),
            }
            for name, value in median.items()
        },
        # each round's pair of neighbours, so that a drift of the machine cancels
        "megalm_against": {
            name: statistics.median(b / a for a, b in zip(seconds["megalm"], seconds[name], strict=True))
            for name in steps
            if name != "megalm"
        },
    }
    if arguments.profile:
        result["profile"] = profile(steps["megalm"], tokens)
    return result


def profile(step: Step, tokens: torch.Tensor) -> list[tuple[str, float]]:
    """Where one step's time goes: the twenty operations with the most time of their own, in milliseconds."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with record(activities=activities) as recorded:
        step(tokens)
    name = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    rows = sorted(recorded.key_averages(), key=lambda row: -getattr(row, name))
    return [(row.key, getattr(row, name) / 1e3) for row in rows[:20]]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--preset", default="gpt2-14m", help="a GPT-2 preset")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seq-length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: this process's CPU seconds, for a machine that others load too; use it with OMP_NUM_THREADS=1",
    )
    parser.add_argument("--nanogpt", type=Path, help="model.py of a nanoGPT clone")
    parser.add_argument(
        "--override", action="append", default=[], metavar="KEY=VALUE", help="of megalm's config"
    )
    parser.add_argument("--profile", action="store_true", help="where megalm's step goes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    result = measure(arguments)
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    print(
        f"{result['parameters'] / 1e6:.1f} M parameters, {result['tokens']} tokens a step, {arguments.dtype}, "
        f"{result['device']}, {result['threads']} threads, matmul {result['matmul_gflops']:.0f} GFLOP/s"
    )
    for name, row in result["contenders"].items():
        ratio = result["megalm_against"].get(name)
        against = f"  megalm is {ratio:.2f}x" if ratio else ""
        share = 100 * row["share_of_matmul_rate"]
        print(f"{name:14}{row['tokens_per_second']:9.0f} tok/s{share:6.1f}% of matmul{against}")
    for key, milliseconds in result.get("profile", []):
        print(f"{milliseconds:9.1f} ms  {key}")


if __name__ == "__main__":
    main()
