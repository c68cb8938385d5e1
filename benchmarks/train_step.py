#!/usr/bin/env python3
"""Times one training step of a model beside nanoGPT's and Hugging Face's of equal size, alternating in one run.

Every contender does the whole step: forward, loss, backward, gradient norm and clipping, AdamW. bf16 means bf16 matmuls with
fp32 master weights: autocast for the peers, bf16 weights beside fp32 masters for megalm. The yardstick is the machine's own
rate of square matmuls (1024^3 on a CPU, 8192^3 on CUDA) in the same number format, measured between the rounds; on a GPU
whose data sheet is known, in bf16, also that (MFU).

    python benchmarks/train_step.py [--dtype bf16] [--nanogpt /path/to/nanoGPT/model.py] [--profile]
    python benchmarks/train_step.py --sweep          every kernel that can be used here, each against the default

Without further words a CPU gets gpt2-14m with 8,192 tokens at 8 x 256 in fp32, a GPU llama-1b with 32,000 tokens at 4 x 2,048 in
bf16 beside Hugging Face's LLaMA with its fastest attention, as it is and compiled. nanoGPT is not a package: `--nanogpt`
names its model.py in a clone. Prints medians and ratios, and with --json one object; FLOPs of a token are
6 N + 12 L S H (N without the position table; tied embeddings).
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from train_step_timing import CLIP, DTYPES, LR, WEIGHT_DECAY, Measured, Step, Timing, alternate, megalm_step

from megalm.config import Config, parse_config
from megalm.kernels import detect
from megalm.model.kernel_choice import check_kernels

DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"preset": "gpt2-14m", "vocab_size": 8192, "batch_size": 8, "seq_length": 256, "dtype": "fp32"},
    "cuda": {"preset": "llama-1b", "vocab_size": 32000, "batch_size": 4, "seq_length": 2048, "dtype": "bf16"},
}


def configuration(arguments: argparse.Namespace) -> Config:
    """megalm's configuration of the benchmark."""
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
    check_kernels(config)
    return config


def contenders(arguments: argparse.Namespace, config: Config, device: torch.device) -> dict[str, Step]:
    """The training steps to compare, by name."""
    from train_step_peers import hugging_face_step, nanogpt_step

    steps = {"megalm": megalm_step(config)}
    if arguments.nanogpt:
        steps["nanogpt"] = nanogpt_step(arguments.nanogpt, config, device)
    steps["hugging_face"] = hugging_face_step(config, device)
    if arguments.compile_peer or (device.type == "cuda" and detect()["triton"].usable):
        steps["hugging_face_compiled"] = hugging_face_step(config, device, compiled=True)
    return steps


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time what the arguments ask for; returns the setting and the figures."""
    config = configuration(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = (arguments.batch_size, arguments.seq_length + 1)
    tokens = torch.randint(0, arguments.vocab_size, shape, generator=torch.Generator().manual_seed(1))
    timing = Timing(device, DTYPES[arguments.dtype], arguments.rounds, arguments.warmup, arguments.clock)
    result: dict[str, Any] = {
        "preset": arguments.preset,
        "parameters": config.model.num_parameters(),
        "dtype": arguments.dtype,
        "clock": arguments.clock,
        "batch_size": arguments.batch_size,
        "seq_length": arguments.seq_length,
        "tokens": tokens[:, 1:].numel(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "peak_gflops": (timing.peak() or 0) / 1e9 or None,
    }
    if arguments.sweep:
        from train_step_sweep import sweep

        return result | {"sweep": sweep(config, tokens, timing)}
    steps = contenders(arguments, config, device)
    result |= _figures(alternate(steps, tokens, timing), result["tokens"], config, timing)
    if arguments.profile:
        result["profile"] = profile(steps["megalm"], tokens)
    return result


def _figures(measured: Measured, count: int, config: Config, timing: Timing) -> dict[str, Any]:
    flops = count * config.model.flops_per_token(config.batch.seq_length)
    rate, peak = statistics.median(measured.rates), timing.peak()
    return {
        "matmul_gflops": rate / 1e9,
        "contenders": {
            name: {
                "tokens_per_second": count / measured.median(name),
                "share_of_matmul_rate": flops / measured.median(name) / rate,
                "mfu": flops / measured.median(name) / peak if peak else None,
                "fastest_tokens_per_second": count / min(seconds),
            }
            for name, seconds in measured.seconds.items()
        },
        "megalm_against": {
            name: measured.ratio("megalm", name) for name in measured.seconds if name != "megalm"
        },
    }


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


def render(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = [
        f"{result['preset']}, {result['parameters'] / 1e6:.1f} M parameters, {result['batch_size']} x {result['seq_length']} "
        f"tokens a step, {result['dtype']}, {result['device']}, {result['threads']} threads, {result['clock']} clock"
    ]
    if "sweep" in result:
        from train_step_sweep import table

        return "\n".join([*lines, table(result["sweep"], "MFU" if result["peak_gflops"] else "of matmul")])
    lines.append(f"matmul {result['matmul_gflops']:.0f} GFLOP/s")
    for name, row in result["contenders"].items():
        ratio = result["megalm_against"].get(name)
        mfu = f"{100 * row['mfu']:6.1f}% MFU" if row["mfu"] else ""
        lines.append(
            f"{name:22}{row['tokens_per_second']:9.0f} tok/s{100 * row['share_of_matmul_rate']:6.1f}% of matmul{mfu}"
            + (f"  megalm is {ratio:.2f}x" if ratio else "")
        )
    lines += [f"{milliseconds:9.1f} ms  {key}" for key, milliseconds in result.get("profile", [])]
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, print."""
    defaults = DEFAULTS["cuda" if torch.cuda.is_available() else "cpu"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=list(DTYPES), default=defaults["dtype"])
    parser.add_argument("--preset", default=defaults["preset"], help="a GPT-2 or LLaMA preset")
    parser.add_argument("--vocab-size", type=int, default=defaults["vocab_size"])
    parser.add_argument("--batch-size", type=int, default=defaults["batch_size"])
    parser.add_argument("--seq-length", type=int, default=defaults["seq_length"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: this process's CPU seconds, for a machine that others load too; use it with OMP_NUM_THREADS=1",
    )
    parser.add_argument("--sweep", action="store_true", help="kernels against the default instead of peers")
    parser.add_argument("--nanogpt", type=Path, help="model.py of a nanoGPT clone")
    parser.add_argument("--compile-peer", action="store_true", help="Hugging Face through torch.compile too")
    parser.add_argument(
        "--override", action="append", default=[], metavar="KEY=VALUE", help="of megalm's config"
    )
    parser.add_argument("--profile", action="store_true", help="where megalm's step goes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    result = measure(arguments)
    print(json.dumps(result, indent=1) if arguments.json else render(result))


if __name__ == "__main__":
    main()
