"""Ten steps of a tiny model under any layout, put together in full, and the comparison of two such runs."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor

from megalm.config import Config
from megalm.config.lora import LoraConfig
from megalm.engine.build import build_engine
from megalm.engine.megatron import MegatronEngine
from megalm.model.build import build_chunks
from megalm.model.init import sharded_parameters
from megalm.parallel.layout import Layout
from megalm.testing import run_distributed
from megalm.train.classify import ClassificationLoss
from megalm.train.distill import DistillationLoss
from megalm.train.mlm import MaskedLanguageLoss
from megalm.train.pretrain import NextTokenLoss
from megalm.train.teacher import Teacher
from tests.parity.shards import Piece, assemble, pieces_of, pieces_of_state
from tests.tiny import (
    LR,
    MICRO_BATCH,
    VOCABULARY,
    tiny_batch,
    tiny_config,
    tiny_engine,
    tiny_labelled,
    tiny_pairs,
    to_microbatches,
)

STEPS = 10
BETA1 = 0.9
# Batches of a step, and what is minimised.
TASKS = {
    "pretrain": (tiny_batch, NextTokenLoss()),
    "mlm": (tiny_pairs, MaskedLanguageLoss()),
    "classify": (tiny_labelled, ClassificationLoss([0.5, 1.0, 3.0])),
}
CLIP = 0.5  # below every norm of these runs, so that clipping acts on each step


@dataclass
class Run:
    """What the world as a whole found; tensors in full."""

    losses: list[float]
    norms: list[float]
    weights_counted: list[float]
    more: list[dict[str, float]]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]


def tiny_teacher(config: Config, layout: Layout) -> Teacher:
    """A GPT of other positions and norms than any student's, of another width if it can be, on the same ranks."""
    settings = config.distill
    layers = [teacher for _, teacher in settings.hidden_layers] if settings.hidden_loss_weight else []
    teacher = tiny_config(
        "gpt2-tiny",
        "model.num_layers=4",
        f"model.hidden_size={64 if layers else 96}",
        "model.init_method_std=0.6",
        "run.seed=5",
    )
    teacher.parallel = config.parallel.model_copy(update={"zero_stage": 0})
    teacher.precision = config.precision
    engine = build_engine(teacher, layout, train=False)
    assert isinstance(engine, MegatronEngine)
    return Teacher(engine, layers)


def train(
    preset: str, overrides: tuple[str, ...], resets: bool, micro_batch_size: int
) -> tuple[list[tuple], list[Piece], list[Piece]]:
    """Ten steps on this rank: metrics, the first step's gradients as they reached Adam, the final weights."""
    config = tiny_config(
        preset,
        "model.num_layers=4",
        f"optimizer.clip_grad={CLIP}",
        f"optimizer.adam_beta1={BETA1}",
        *overrides,
    )
    engine = tiny_engine(config)
    if config.lora.quantize_base != "none":
        load_drawn_base(engine, config)
    teacher = tiny_teacher(config, engine.layout) if config.task == "distill" else None
    batch, loss = (tiny_batch, DistillationLoss(config)) if teacher else TASKS[config.task]
    metrics = []
    for step in range(STEPS):
        samples = batch(step, resets)
        if config.model.architecture == "gpt":
            samples.token_types_BS = None
        microbatches = to_microbatches(samples, engine.layout, micro_batch_size)
        if teacher:
            teacher(microbatches, training=True)
        result = engine.step(microbatches, loss, LR)
        metrics.append((result.loss, result.grad_norm, result.weight, result.skipped, result.more))
        if step == 0:
            # Adam's first moment starts at zero, so it is (1 - beta1) x the reduced, clipped gradient
            gradients = pieces_of_state(engine.state(), "optimizer.exp_avg.")
    if config.parallel.zero_stage == 3:  # each rank holds a part of each weight
        return metrics, gradients, pieces_of_state(engine.state(), "model.")
    engine.gather_weights()
    weights = [
        piece for chunk in engine.chunks for piece in pieces_of(sharded_parameters(chunk, engine.layout))
    ]
    return metrics, gradients, weights


def load_drawn_base(
    engine: Any, config: Config, through: Callable[[str, Tensor], Tensor] | None = None
) -> None:
    """Load into an engine with adapters the initial weights of its model without them, as a checkpoint's."""
    plain = config.model_copy(update={"lora": LoraConfig()})
    for chunk, base in enumerate(build_chunks(plain, engine.layout)):
        number = f"{chunk}." if len(engine.chunks) > 1 else ""
        for name, weight in base.named_parameters():
            whole = weight.detach()
            engine.load({f"model.{number}{name}": through(name, whole) if through else whole})


@functools.cache
def run(
    world_size: int,
    preset: str,
    overrides: tuple[str, ...],
    resets: bool = False,
    micro_batch_size: int = MICRO_BATCH,
) -> Run:
    """The whole world's run; all ranks must report the same metrics."""
    ranks = run_distributed(train, world_size, preset, overrides, resets, micro_batch_size)
    metrics = ranks[0][0]
    assert all(rank[0] == metrics for rank in ranks)
    assert not any(skipped for _, _, _, skipped, _ in metrics)
    moments = assemble(rank[1] for rank in ranks)
    return Run(
        losses=[loss for loss, _, _, _, _ in metrics],
        norms=[norm for _, norm, _, _, _ in metrics],
        weights_counted=[weight for _, _, weight, _, _ in metrics],
        # the scale of the loss in fp16 is no figure of the model
        more=[{k: v for k, v in more.items() if k != "loss_scale"} for _, _, _, _, more in metrics],
        gradients={name.removeprefix("optimizer.exp_avg."): m / (1 - BETA1) for name, m in moments.items()},
        weights=assemble(rank[2] for rank in ranks),
    )


def assert_same_tensors(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    """Each tensor's largest deviation is at most `bound` x its largest element; vocabulary padding is zero."""
    assert found.keys() == expected.keys()
    for name, right in expected.items():
        left, padding = found[name][: len(right)], found[name][len(right) :]
        assert len(padding) == 0 or len(right) == VOCABULARY, f"{name} grew to {tuple(found[name].shape)}"
        assert not padding.any(), f"{name}: padding is not zero"
        assert right.any(), f"{name} is zero: nothing is compared"
        deviation = float((left - right).abs().max() / right.abs().max())
        assert deviation <= bound, f"{name} deviates by {deviation:.1e} of its largest element"


@dataclass(frozen=True)
class Bounds:
    """Largest deviations allowed: of losses and norms relative, of tensors relative to their largest element."""

    metrics: float
    gradients: float
    weights: float


# some times what was seen on several kinds of processor, each of which sums in an order of its own
FP64 = Bounds(metrics=1e-11, gradients=1e-11, weights=1e-9)
FP32 = Bounds(metrics=5e-6, gradients=1e-5, weights=2e-4)


def assert_same_run(found: Run, expected: Run, bounds: Bounds, clip: float = CLIP) -> None:
    """All ten losses and norms, the first step's gradients and the final weights are the same; clipping acted."""
    assert min(expected.norms) > clip
    assert len(expected.losses) == STEPS
    assert found.weights_counted == expected.weights_counted
    assert found.losses == pytest.approx(expected.losses, rel=bounds.metrics)
    for mine, theirs in zip(found.more, expected.more, strict=True):
        assert mine == pytest.approx(theirs, rel=bounds.metrics, abs=0)
    assert found.norms == pytest.approx(expected.norms, rel=bounds.metrics)
    assert_same_tensors(found.gradients, expected.gradients, bounds.gradients)
    assert_same_tensors(found.weights, expected.weights, bounds.weights)
