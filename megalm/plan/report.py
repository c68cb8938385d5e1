"""What a plan says: bytes of each pipeline stage's fullest rank by part, bytes sent, operations; as text and plain values."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

MIB, GIB = 2**20, 2**30


@dataclass
class StagePlan:
    """One rank of a pipeline stage, and what stands for the others of it; sizes in bytes.

    stages: first and last of the stages that this one stands for (those after the first hold no more).
    parameters: numbers of this rank's parameters by part of the model. peak: most bytes at any time of a step, of which
    `at_peak` says by label what they are. resting: between steps. sent: bytes this rank sends in a step, by axis.
    """

    layout: str
    stages: tuple[int, int]
    layers: int
    parameters: dict[str, int]
    weights: int
    gradients: int
    optimizer: int
    resting: int
    peak: int
    at_peak: dict[str, int]
    sent: dict[str, int]

    @property
    def name(self) -> str:
        """`stage 0` or `stages 1-2`."""
        first, last = self.stages
        return f"stage {first}" if first == last else f"stages {first}-{last}"


@dataclass
class Hint:
    """Another value of the configuration, and the peak of the fullest stage with it."""

    override: str
    peak: int
    saves: int


@dataclass
class Plan:
    """A whole plan; see `megalm.plan.run.plan`."""

    layout: str
    world_size: int
    device: str
    parameters: int
    microbatches: int
    tokens_per_step: int
    flops_per_step: float
    bubble: float
    device_memory: int | None
    reserved: int
    stages: list[StagePlan]
    replaced: list[str] = field(default_factory=list)
    """Fields whose kernels are not on this machine: planned with the defaults."""
    hints: list[Hint] = field(default_factory=list)
    rates: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def fullest(self) -> StagePlan:
        """The stage that needs the most memory."""
        return max(self.stages, key=lambda stage: stage.peak)

    @property
    def fits(self) -> bool | None:
        """Whether the fullest rank fits; None where the device's memory is not known."""
        return None if self.device_memory is None else self.fullest.peak + self.reserved <= self.device_memory

    def to_json(self) -> dict[str, Any]:
        """Plain values; sizes in bytes."""
        return asdict(self) | {"peak": self.fullest.peak, "fits": self.fits}


def render(plan: Plan) -> str:
    """The plan as text for a terminal."""
    lines = [
        f"{plan.parameters / 1e9:.3g} B parameters, {plan.layout}, {plan.world_size} processes, on {plan.device}",
        f"a step: {plan.microbatches} microbatches a rank, {plan.tokens_per_step:,} tokens, "
        f"{plan.flops_per_step:.3g} FLOPs, pipeline bubble {100 * plan.bubble:.0f}%",
        "",
        *_memory_table(plan.stages),
        "",
        *_verdict(plan),
        *[f"planned with the default of {name}: what it names cannot run here" for name in plan.replaced],
        *_traffic(plan.stages),
        *_rates(plan),
        f"planned in {plan.seconds:.1f} s",
    ]
    return "\n".join(lines)


def _memory_table(stages: Sequence[StagePlan]) -> list[str]:
    rows: list[tuple[str, list[str]]] = [("a rank holds", [stage.name for stage in stages])]
    rows.append(("layers", [str(stage.layers) for stage in stages]))
    for name in ("weights", "gradients", "optimizer"):
        rows.append((name, [_size(getattr(stage, name)) for stage in stages]))
    rows.append(("between steps", [_size(stage.resting) for stage in stages]))
    rows.append(("at the peak", [_size(stage.peak) for stage in stages]))
    labels = sorted({label for stage in stages for label in stage.at_peak})
    for label in labels:
        rows.append((f"  {label}", [_size(stage.at_peak.get(label, 0)) for stage in stages]))
    parts = sorted({part for stage in stages for part in stage.parameters})
    rows.append(("10^6 parameters", [f"{sum(stage.parameters.values()) / 1e6:.2f}" for stage in stages]))
    for part in parts:
        rows.append((f"  {part}", [f"{stage.parameters.get(part, 0) / 1e6:.2f}" for stage in stages]))
    width = max(len(name) for name, _ in rows)
    return [name.ljust(width) + "".join(cell.rjust(13) for cell in cells) for name, cells in rows]


def _verdict(plan: Plan) -> list[str]:
    stage = plan.fullest
    label, size = max(stage.at_peak.items(), key=lambda item: item[1])
    line = f"fullest: {stage.name}, {_size(stage.peak)}, the largest part is {label} ({_size(size)})"
    if plan.device_memory is not None:
        verb = "fits" if plan.fits else "does not fit"
        line += f"; with {_size(plan.reserved)} set aside it {verb} into {_size(plan.device_memory)}"
    lines = [line]
    for hint in plan.hints:
        lines.append(f"  {hint.override} would save {_size(hint.saves)} there ({_size(hint.peak)})")
    return lines


def _traffic(stages: Sequence[StagePlan]) -> list[str]:
    axes = sorted({axis for stage in stages for axis in stage.sent})
    return [
        f"sent in a step, {axis}: "
        + ", ".join(f"{stage.name} {_size(stage.sent.get(axis, 0))}" for stage in stages)
        for axis in axes
    ]


def _rates(plan: Plan) -> list[str]:
    return [
        f"estimate: at {100 * rate['mfu']:.0f}% MFU {rate['step_seconds']:.2f} s a step, "
        f"{rate['tokens_per_second']:,.0f} tokens/s ({rate['tokens_per_second_per_device']:,.0f} a device)"
        for rate in plan.rates
    ]


def _size(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.2f} MiB"
