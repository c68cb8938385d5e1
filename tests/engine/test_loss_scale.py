"""fp16: the loss is scaled so that small gradients survive, and the scale follows what large ones bear."""

import math

import pytest
import torch
from torch import Tensor

from megalm.config.schema import PrecisionConfig
from megalm.engine.base import MicroBatch
from megalm.engine.loss_scale import LossScale
from megalm.engine.megatron import MegatronEngine
from megalm.train.pretrain import NextTokenLoss
from tests.engine.test_optimizer import spoil
from tests.parity.runs import Bounds, assert_same_run, run
from tests.tiny import LR, tiny_config, tiny_engine, tiny_microbatches
from tests.worlds import in_world

FP16 = "precision.dtype=fp16"
TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
PP2 = "parallel.pipeline_model_parallel_size=2"
ZERO1 = "parallel.zero_stage=1"
# half precision keeps 11 bits: 5e-4; a first update of Adam is the gradient's sign, so eps stays above its rounding
EPS = "optimizer.adam_eps=1e-4"
HALF = Bounds(metrics=5e-4, gradients=1e-2, weights=2e-2)
# against another format also the products' rounding counts, which differs from processor to processor
HALF_AGAINST_FULL = Bounds(metrics=5e-4, gradients=2e-2, weights=4e-2)


def scale_after(overflows: str, **fields: float) -> list[float]:
    """The scale after each step; `x` marks those that overflowed."""
    scale = LossScale(PrecisionConfig(dtype="fp16", **fields))
    values = []
    for step in overflows:
        scale.update(step == "x")
        values.append(scale.value)
    return values


def test_scale_halves_once_the_patience_is_used_up_and_never_below_the_minimum() -> None:
    fields = {"initial_loss_scale": 16.0, "min_loss_scale": 4.0, "hysteresis": 2, "loss_scale_window": 99}
    assert scale_after("x.xxx", **fields) == [16, 16, 8, 4, 4]


def test_scale_doubles_after_a_window_without_overflow_and_patience_returns() -> None:
    fields = {"initial_loss_scale": 8.0, "hysteresis": 2, "loss_scale_window": 3}
    assert scale_after("..x...", **fields) == [8, 8, 8, 8, 8, 16]
    assert scale_after("xx...xx", **fields) == [8, 4, 4, 4, 8, 8, 4]


def test_scale_goes_on_from_its_counters() -> None:
    precision = PrecisionConfig(dtype="fp16", initial_loss_scale=64.0, loss_scale_window=4)
    for steps in ("", ".", "x", "x..", "xx.", "...."):
        whole, first, second = LossScale(precision), LossScale(precision), LossScale(precision)
        for step in steps:
            whole.update(step == "x")
            first.update(step == "x")
        second.load(first.counters)
        for step in "..xx....":
            whole.update(step == "x")
            second.update(step == "x")
        assert second.counters == whole.counters


@pytest.mark.parametrize(
    ("world_size", "layout"),
    [
        (2, (TP2,)),
        (2, (TP2, SP)),
        (2, (PP2,)),
        (2, ()),
        (2, (ZERO1,)),
        (2, (ZERO1, "precision.grad_reduce_dtype=fp16")),
    ],
    ids=["TP2", "TP2+SP", "PP2", "DP2", "DP2+ZeRO-1", "DP2+ZeRO-1 in fp16"],
)
def test_fp16_trains_under_each_layout_like_one_process(world_size: int, layout: tuple[str, ...]) -> None:
    assert_same_run(
        run(world_size, "gpt2-tiny", (FP16, EPS, *layout)), run(1, "gpt2-tiny", (FP16, EPS)), HALF
    )


@pytest.mark.parametrize("preset", ["gpt2-tiny", "llama-tiny"])
@pytest.mark.parametrize("head", ["fused", "plain"])
def test_fp16_trains_like_fp32(preset: str, head: str) -> None:
    settings = (EPS, f"model.cross_entropy={head}")
    fp32 = run(1, preset, ("precision.dtype=fp32", *settings))
    fp16 = run(1, preset, (FP16, *settings))
    assert {tensor.dtype for tensor in fp16.weights.values()} == {torch.float16}
    fp16.weights = {name: tensor.float() for name, tensor in fp16.weights.items()}
    assert_same_run(fp16, fp32, HALF_AGAINST_FULL)


def losses_and_scales(engine: MegatronEngine, steps: range) -> list[tuple[float, float | None, bool]]:
    found = []
    for step in steps:
        metrics = engine.step(tiny_microbatches(step, engine.layout), NextTokenLoss(), LR)
        assert metrics.skipped == metrics.overflow
        found.append((metrics.loss, metrics.more["loss_scale"], metrics.skipped))
    return found


@pytest.mark.parametrize("layout", [(), (ZERO1,), (TP2,), (PP2,)], ids=["DP2", "DP2+ZeRO-1", "TP2", "PP2"])
@in_world(2)
def test_scale_too_large_falls_until_gradients_fit_and_nothing_is_updated_before(
    layout: tuple[str, ...],
) -> None:
    settings = (FP16, "precision.hysteresis=1", "precision.loss_scale_window=3", *layout)
    engine = tiny_engine(tiny_config("llama-tiny", *settings, f"precision.initial_loss_scale={2**24}"))
    before = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    skipped = 0
    while losses_and_scales(engine, range(skipped, skipped + 1))[0][2]:
        skipped += 1
        for name, parameter in engine.model.named_parameters():
            assert torch.equal(parameter, before[name]), name
    assert skipped >= 2
    fitting = 2.0**24 / 2**skipped
    assert engine.counters["loss_scale"] == fitting and engine.counters["updates"] == 1
    # as if it had begun with the scale that fits
    plain = tiny_engine(tiny_config("llama-tiny", *settings, f"precision.initial_loss_scale={fitting:g}"))
    losses_and_scales(plain, range(skipped, skipped + 1))
    rest = range(skipped + 1, skipped + 6)
    found = losses_and_scales(engine, rest)
    assert found == losses_and_scales(plain, rest)
    assert [scale for _, scale, _ in found][:3] == [fitting, fitting, 2 * fitting]
    counters: list[dict] = [{}, {}]
    torch.distributed.all_gather_object(counters, engine.counters)
    assert counters[0] == counters[1]


@in_world(2)
def test_overflow_on_one_rank_is_everyones_and_is_told_apart_from_a_loss_that_is_not_finite() -> None:
    for layout in ((), (ZERO1,), (TP2,), (PP2,)):
        engine = tiny_engine(tiny_config("llama-tiny", FP16, "precision.hysteresis=1", *layout))
        for kind, overflow, scale in (("inf", True, 2.0**15), ("loss", False, 2.0**15)):
            batches = tiny_microbatches(0, engine.layout)
            rank = 1 if kind == "loss" or layout != (PP2,) else 0
            if kind == "loss" and layout == (TP2,):  # whose ranks hold the same samples
                rank = engine.layout.rank
            spoil(kind, engine, batches, rank)
            metrics = engine.step(batches, NextTokenLoss(), LR)
            assert (metrics.skipped, metrics.overflow) == (True, overflow), (layout, kind)
            assert math.isfinite(metrics.loss) == overflow
            assert engine.counters["loss_scale"] == scale
            assert engine.counters["updates"] == 0


@in_world(1)
def test_gradient_that_is_not_finite_at_the_smallest_scale_is_no_overflow() -> None:
    settings = (
        FP16,
        "precision.initial_loss_scale=2",
        "precision.min_loss_scale=1",
        "precision.hysteresis=1",
    )
    engine = tiny_engine(tiny_config("llama-tiny", *settings))
    found = []
    for _ in range(3):
        batches = tiny_microbatches(0, engine.layout)
        spoil("nan", engine, batches, 0)
        metrics = engine.step(batches, NextTokenLoss(), LR)
        assert metrics.skipped
        found.append((metrics.more["loss_scale"], metrics.overflow))
    assert found == [(2.0, True), (1.0, False), (1.0, False)]


class SmallLoss(NextTokenLoss):
    """A millionth of the loss."""

    def weight(self, microbatch: MicroBatch) -> Tensor:
        """As if there were a million times the tokens."""
        return super().weight(microbatch) * 1e6


def first_moments(*overrides: str) -> Tensor:
    """(1 - beta1) x the gradients of one step with a small loss."""
    engine = tiny_engine(tiny_config("llama-tiny", "optimizer.clip_grad=0", *overrides))
    engine.step(tiny_microbatches(0, engine.layout), SmallLoss(), LR)
    state = engine.state()
    return torch.cat([v.data.flatten() for k, v in state.items() if k.startswith("optimizer.exp_avg.")])


@in_world(1)
def test_scaling_keeps_gradients_that_fp16_alone_would_lose() -> None:
    exact = first_moments("precision.dtype=fp32")
    errors = []
    for scale in (1, 65536):
        found = first_moments(FP16, f"precision.initial_loss_scale={scale}")
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[0] > 0.1 and errors[1] < 1e-2, errors
