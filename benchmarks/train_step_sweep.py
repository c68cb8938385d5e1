"""Every kernel choice that can be used here, each against the default: the table of `train_step.py --sweep`."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from train_step_timing import Step, Timing, alternate, held_gib, megalm_step

from megalm.config import Config
from megalm.model.activation import ACTIVATION_KERNELS
from megalm.model.attention_kernels import ATTENTIONS
from megalm.model.kernel_choice import problems
from megalm.model.norm import NORMS
from megalm.model.positions import ROPES

AXES: dict[str, Iterable[str]] = {
    "model.attention": ATTENTIONS,
    "model.norm": NORMS,
    "model.activation_kernel": ACTIVATION_KERNELS,
    "model.rope_kernel": ROPES,
    "model.cross_entropy": ("auto", "fused", "plain", "liger"),
    "optimizer.kernel": ("auto", "torch", "foreach", "apex"),
    "precision.fp8": ("none", "e4m3", "hybrid"),
    "train.compile": ("none", "blocks", "model"),
}
# What `auto` is already: timing it against itself shows the noise once, and then only costs time.
SAME_AS_AUTO = {("model.cross_entropy", "fused"), ("optimizer.kernel", "torch")}
WORTH = 1.01


def _value(config: Config, field: str) -> str:
    section, name = field.split(".")
    return str(getattr(getattr(config, section), name))


def _with(config: Config, choices: Mapping[str, str]) -> Config:
    config = config.model_copy(deep=True)
    for field, choice in choices.items():
        section, name = field.split(".")
        setattr(getattr(config, section), name, choice)
    return config


def candidates(config: Config) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """(choices to time, why the others are left out) of all that differ from `config`."""
    usable, left_out = [], {}
    for field, names in AXES.items():
        default = _value(config, field)
        for name in names:
            if name == default or (default == "auto" and _is_auto(field, name)):
                continue
            if field == "model.rope_kernel" and config.model.position_embedding != "rope":
                continue
            problem = problems(_with(config, {field: name})).get(field)
            if problem:
                left_out[f"{field}={name}"] = problem
            else:
                usable.append((field, name))
    return usable, left_out


def _is_auto(field: str, name: str) -> bool:
    registries: dict[str, Mapping[str, Any]] = {
        "model.attention": ATTENTIONS,
        "model.norm": NORMS,
        "model.activation_kernel": ACTIVATION_KERNELS,
        "model.rope_kernel": ROPES,
    }
    if name == "te" and field == "model.norm":
        return False
    registry = registries.get(field, {})
    return (field, name) in SAME_AS_AUTO or (name in registry and registry[name] is registry["auto"])


def sweep(config: Config, tokens: torch.Tensor, timing: Timing) -> dict[str, Any]:
    """Time the default beside each choice, alternating; then beside all choices together that won on their own."""
    usable, left_out = candidates(config)
    empty = held_gib(timing.device)
    default = megalm_step(config)
    first_loss = default(tokens)
    default_gib = held_gib(timing.device) - empty
    rows = []
    best: dict[str, tuple[float, str]] = {}
    for field, name in usable:
        row = _against_default(config, {field: name}, default, first_loss, default_gib, tokens, timing)
        rows.append({"choice": f"{field}={name}"} | row)
        print(f"{field}={name}: {row['speedup']:.3f}x", file=sys.stderr)
        if row["speedup"] > max(WORTH, best.get(field, (0.0, ""))[0]):
            best[field] = (row["speedup"], name)
    winners = {field: name for field, (_, name) in best.items()}
    if len(winners) > 1 and not problems(_with(config, winners)):
        row = _against_default(config, winners, default, first_loss, default_gib, tokens, timing)
        rows.append({"choice": " ".join(f"{field}={name}" for field, name in winners.items())} | row)
    return {"rows": rows, "left_out": left_out}


def _against_default(
    config: Config,
    choices: Mapping[str, str],
    default: Step,
    first_loss: float,
    default_gib: float,
    tokens: torch.Tensor,
    timing: Timing,
) -> dict[str, Any]:
    before = held_gib(timing.device)
    steps = {"default": default, "choice": megalm_step(_with(config, choices))}
    choice_gib = held_gib(timing.device) - before
    measured = alternate(steps, tokens, timing)
    count = tokens[:, 1:].numel()
    flops = count * config.model.flops_per_token(tokens.shape[1] - 1)
    yardstick = timing.peak() or sorted(measured.rates)[len(measured.rates) // 2]
    others = {"default": choice_gib, "choice": default_gib}
    return {
        "speedup": measured.ratio("choice", "default"),
        "loss_difference": abs(measured.losses["choice"] / first_loss - 1),
        **{
            f"{who}_{what}": value
            for who in steps
            for what, value in {
                "tokens_per_second": count / measured.median(who),
                "share": flops / measured.median(who) / yardstick,
                "peak_gib": measured.peak_gib[who] - others[who] if who in measured.peak_gib else None,
            }.items()
        },
    }


def table(result: Mapping[str, Any], yardstick: str) -> str:
    """The sweep as text, the fastest first."""
    lines = [
        f"{'choice':48}{'tok/s':>9}{'default':>9}{'speed-up':>9}{yardstick:>11}{'peak GiB':>10}{'default':>9}{'loss off':>10}"
    ]
    for row in sorted(result["rows"], key=lambda row: -row["speedup"]):
        peaks = (row["choice_peak_gib"], row["default_peak_gib"])
        memory = "".join(
            f"{peak:{w}.1f}" if peak is not None else f"{'-':>{w}}"
            for peak, w in zip(peaks, (10, 9), strict=True)
        )
        lines.append(
            f"{row['choice']:48}{row['choice_tokens_per_second']:9.0f}{row['default_tokens_per_second']:9.0f}"
            f"{row['speedup']:8.3f}x{100 * row['choice_share']:10.1f}%{memory}{row['loss_difference']:10.1e}"
        )
    lines += [f"left out: {choice}: {why}" for choice, why in result["left_out"].items()]
    return "\n".join(lines)
