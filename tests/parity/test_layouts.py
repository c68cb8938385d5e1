"""Every layout trains like one process: gradients, losses, gradient norms and weights of ten steps."""

import functools
from dataclasses import dataclass

import pytest
from torch import Tensor

from megalm.model.init import sharded_parameters
from megalm.testing import run_distributed
from megalm.train.pretrain import NextTokenLoss
from tests.parity.shards import Piece, assemble, pieces_of, pieces_of_state
from tests.tiny import LR, VOCABULARY, tiny_config, tiny_engine, tiny_microbatches

STEPS = 10
BETA1 = 0.9
CLIP = 0.5  # below every norm of these runs, so that clipping acts on each step

TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
PP2 = "parallel.pipeline_model_parallel_size=2"
PP4 = "parallel.pipeline_model_parallel_size=4"
ZERO1 = "parallel.zero_stage=1"

# What the processes do not share by TP and PP, they share by DP.
LAYOUTS = {
    "TP2": (2, (TP2,)),
    "TP2+SP": (2, (TP2, SP)),
    "PP2": (2, (PP2,)),
    "PP4": (4, (PP4,)),
    "TP2xPP2": (4, (TP2, PP2)),
    "TP2+SPxPP2": (4, (TP2, SP, PP2)),
    "DP2": (2, ()),
    "TP2+SPxDP2": (4, (TP2, SP)),
    "PP2xDP2": (4, (PP2,)),
}
SHARDED_LAYOUTS = {
    "DP2+ZeRO-1": (2, (ZERO1,)),
    "DP4+ZeRO-1": (4, (ZERO1,)),
    "TP2xDP2+ZeRO-1": (4, (TP2, ZERO1)),
    "PP2xDP2+ZeRO-1": (4, (PP2, ZERO1)),
}
MODELS = {
    "gpt2-tied": ("gpt2-tiny", "model.tie_embeddings=true"),
    "gpt2-untied": ("gpt2-tiny", "model.tie_embeddings=false"),
    "llama-tied": ("llama-tiny", "model.tie_embeddings=true"),
    "llama-untied": ("llama-tiny", "model.tie_embeddings=false"),
}


@dataclass
class Run:
    """What the world as a whole found; tensors in full."""

    losses: list[float]
    norms: list[float]
    weights_counted: list[float]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]


def train(
    preset: str, overrides: tuple[str, ...], resets: bool
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
    metrics = []
    for step in range(STEPS):
        result = engine.step(tiny_microbatches(step, engine.layout, resets), NextTokenLoss(), LR)
        metrics.append((result.loss, result.grad_norm, result.weight, result.skipped))
        if step == 0:
            # Adam's first moment starts at zero, so it is (1 - beta1) x the reduced, clipped gradient
            gradients = pieces_of_state(engine.state(), "optimizer.exp_avg.")
    return metrics, gradients, pieces_of(sharded_parameters(engine.model, engine.layout))


@functools.cache
def run(world_size: int, preset: str, overrides: tuple[str, ...], resets: bool = False) -> Run:
    """The whole world's run; all ranks must report the same metrics."""
    ranks = run_distributed(train, world_size, preset, overrides, resets)
    metrics = ranks[0][0]
    assert all(rank[0] == metrics for rank in ranks)
    assert not any(skipped for _, _, _, skipped in metrics)
    moments = assemble(rank[1] for rank in ranks)
    return Run(
        losses=[loss for loss, _, _, _ in metrics],
        norms=[norm for _, norm, _, _ in metrics],
        weights_counted=[weight for _, _, weight, _ in metrics],
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


FP64 = Bounds(metrics=1e-12, gradients=1e-12, weights=1e-10)
FP32 = Bounds(metrics=1e-6, gradients=5e-6, weights=5e-5)


def assert_same_run(found: Run, expected: Run, bounds: Bounds) -> None:
    """All ten losses and norms, the first step's gradients and the final weights are the same."""
    assert min(expected.norms) > CLIP
    assert len(expected.losses) == STEPS
    assert found.weights_counted == expected.weights_counted
    assert found.losses == pytest.approx(expected.losses, rel=bounds.metrics)
    assert found.norms == pytest.approx(expected.norms, rel=bounds.metrics)
    assert_same_tensors(found.gradients, expected.gradients, bounds.gradients)
    assert_same_tensors(found.weights, expected.weights, bounds.weights)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_trains_like_one_process_in_fp64(layout: str, model: str) -> None:
    world_size, overrides = LAYOUTS[layout]
    preset, tied = MODELS[model]
    found = run(world_size, preset, (tied, *overrides))
    assert_same_run(found, run(1, preset, (tied,)), FP64)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", SHARDED_LAYOUTS)
def test_sharded_optimizer_trains_like_one_process_in_fp32(layout: str, model: str) -> None:
    world_size, overrides = SHARDED_LAYOUTS[layout]
    preset, tied = MODELS[model]
    # a gradient element that is rounding alone must not become a full step: eps above the rounding
    fp32 = (tied, "precision.dtype=fp32", "optimizer.adam_eps=1e-5")
    found = run(world_size, preset, (*fp32, *overrides))
    assert_same_run(found, run(1, preset, fp32), FP32)


@pytest.mark.parametrize("preset", ["gpt2-tiny", "llama-tiny"])
@pytest.mark.parametrize("layout", ["TP2+SP", "PP4", "TP2+SPxPP2", "TP2+SPxDP2"])
def test_document_resets_train_like_one_process(layout: str, preset: str) -> None:
    world_size, overrides = LAYOUTS[layout]
    expected = run(1, preset, (), resets=True)
    assert_same_run(run(world_size, preset, overrides, resets=True), expected, FP64)
    plain = run(
        1, preset, ("model.tie_embeddings=true" if preset == "gpt2-tiny" else "model.tie_embeddings=false",)
    )
    assert expected.losses != pytest.approx(plain.losses, rel=1e-6), "resets changed nothing"


@pytest.mark.parametrize("position", ["alibi", "sinusoidal", "none"])
@pytest.mark.parametrize("layout", ["TP2+SP", "TP2xPP2", "PP2xDP2"])
def test_other_positions_train_like_one_process(layout: str, position: str) -> None:
    world_size, overrides = LAYOUTS[layout]
    setting = f"model.position_embedding={position}"
    expected = run(1, "llama-tiny", (setting,))
    found = run(world_size, "llama-tiny", (setting, *overrides))
    assert_same_run(found, expected, FP64)
