"""Steps of the engine `deepspeed`: the update, what is skipped, dropout, recompute, passes without gradients, offloading."""

from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megalm.config import Config
from megalm.engine import deepspeed_setup
from megalm.engine.base import Engine, MicroBatch
from megalm.engine.deepspeed_state import gathered
from megalm.errors import UserError
from megalm.testing import run_distributed
from megalm.train.pretrain import NextTokenLoss
from tests.engine.test_optimizer import spoil, without_counted_tokens
from tests.tiny import LR, tiny_batch, tiny_config, tiny_engine, tiny_microbatches, to_microbatches
from tests.worlds import in_world

TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
FP32, BF16 = "precision.dtype=fp32", "precision.dtype=bf16"
DROPOUT = ("model.hidden_dropout=0.1", "model.attention_dropout=0.1")
STAGES = (0, 1, 2, 3)


def zero(stage: int, *overrides: str, preset: str = "gpt2-tiny") -> Config:
    return tiny_config(preset, FP32, "engine=deepspeed", f"parallel.zero_stage={stage}", *overrides)


def megatron(*overrides: str, preset: str = "gpt2-tiny") -> Config:
    return tiny_config(preset, FP32, *overrides)


def weights(engine: Engine) -> dict[str, Tensor]:
    """Copies of this rank's weights, whole also in ZeRO-3."""
    result = {}
    for name, parameter in engine.model.named_parameters():
        with gathered(parameter):
            result[name] = parameter.detach().clone()
    return result


def randomize(engine: Engine) -> None:
    """Nonzero values everywhere, biases and the optimizer's own copies too."""
    state = {key: dtype for key, dtype in _formats(engine).items() if not key.startswith("optimizer.")}
    generator = torch.Generator().manual_seed(0)
    portion = engine.empty_state(state, with_optimizer=False)
    engine.load({place: torch.randn(s.data.shape, generator=generator) for place, s in portion.items()})


def _formats(engine: Engine) -> dict[str, torch.dtype]:
    mine = {shard.key: shard.data.dtype for shard in engine.state().values()}
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return {key: dtype for part in parts for key, dtype in part.items()}


def train(engine: Engine, steps: int = 3) -> list[tuple[float, float]]:
    """Losses and norms."""
    metrics = [engine.step(tiny_microbatches(s, engine.layout), NextTokenLoss(), LR) for s in range(steps)]
    return [(m.loss, m.grad_norm) for m in metrics]


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=bound, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("dtype", [FP32, BF16])
@in_world(2)
def test_weight_decay_acts_on_matrices_alone(dtype: str) -> None:
    """Without gradients AdamW only decays: here to exactly one half."""
    for stage in STAGES:
        engine = tiny_engine(zero(stage, dtype, "optimizer.weight_decay=1.0"))
        randomize(engine)
        before = weights(engine)
        microbatches = without_counted_tokens(tiny_microbatches(0, engine.layout))
        metrics = engine.step(microbatches, NextTokenLoss(), lr=0.5)
        assert (metrics.loss, metrics.grad_norm, metrics.weight, metrics.skipped) == (0.0, 0.0, 0.0, False)
        for name, weight in weights(engine).items():
            is_matrix = name.endswith("weight") and "norm" not in name
            expected = before[name] / 2 if is_matrix else before[name]
            assert before[name].all() and torch.equal(weight, expected), (stage, name)


def run_with_a_spoilt_step(kind: str | None, config: Config) -> tuple[list, dict[str, Tensor], list[bool]]:
    """(losses and norms of the good steps, final weights, what was skipped); step 1 is spoilt or left out."""
    engine = tiny_engine(config)
    good, skipped = [], []
    for step in range(3):
        microbatches = tiny_microbatches(step, engine.layout)
        if step == 1:
            if kind is None:
                continue
            spoil(kind, engine, microbatches, rank=1)
            before, updates = weights(engine), engine.counters["updates"]
        metrics = engine.step(microbatches, NextTokenLoss(), LR)
        skipped.append(metrics.skipped)
        if step == 1:
            assert engine.counters["updates"] == updates == 1
            assert all(torch.equal(weight, before[name]) for name, weight in weights(engine).items())
        else:
            good.append((metrics.loss, metrics.grad_norm))
    return good, weights(engine), skipped


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("stage", STAGES)
@in_world(2)
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_by_all(stage: int, dtype: str) -> None:
    """Training goes on bit for bit as if the step had not been."""
    config = zero(stage, dtype)
    expected, expected_weights, _ = run_with_a_spoilt_step(None, config)
    for kind in ("loss", "nan", "inf"):
        good, found, skipped = run_with_a_spoilt_step(kind, config)
        assert skipped == [False, True, False], kind
        assert good == expected, kind
        assert all(torch.equal(weight, expected_weights[name]) for name, weight in found.items()), kind


class Lying(NextTokenLoss):
    """Reports an infinite sum whose gradient is finite."""

    def sum(self, output: Tensor, microbatch: MicroBatch) -> Tensor:
        """One microbatch's sum, and infinity that does not depend on any weight."""
        return output + float("inf")


@in_world(2)
def test_a_loss_that_is_not_finite_is_skipped_whatever_its_gradients() -> None:
    for stage in STAGES:
        engine = tiny_engine(zero(stage))
        before = weights(engine)
        metrics = engine.step(tiny_microbatches(0, engine.layout), Lying(), LR)
        assert metrics.skipped and metrics.loss == float("inf")
        assert all(torch.equal(weight, before[name]) for name, weight in weights(engine).items()), stage


@pytest.mark.parametrize("layout", [(), (TP2, SP)], ids=["DP2", "TP2+SP"])
@in_world(2)
def test_dropout_draws_the_masks_of_engine_megatron(layout: tuple[str, ...]) -> None:
    expected = train(tiny_engine(megatron(*DROPOUT, *layout)))
    plain = train(tiny_engine(megatron(*layout)))
    assert expected[0][0] != pytest.approx(plain[0][0], rel=1e-6), "dropout does not act"
    for stage in STAGES:
        found = train(tiny_engine(zero(stage, *DROPOUT, *layout)))
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-5, atol=0)


@pytest.mark.parametrize("stage", STAGES)
@in_world(2)
def test_recomputing_activations_changes_nothing(stage: int) -> None:
    plain = tiny_engine(zero(stage, *DROPOUT))
    expected, expected_weights = train(plain), weights(plain)
    for granularity in ("selective", "full"):
        engine = tiny_engine(zero(stage, *DROPOUT, f"train.recompute.granularity={granularity}"))
        torch.testing.assert_close(
            torch.tensor(train(engine)), torch.tensor(expected), rtol=1e-6, atol=0, msg=granularity
        )
        assert_close(weights(engine), expected_weights, 1e-6)


@in_world(2)
def test_passes_without_gradients_give_the_numbers_of_engine_megatron_and_leave_training_alone() -> None:
    other = tiny_engine(megatron())
    expected = other.evaluate(tiny_microbatches(9, other.layout), NextTokenLoss())
    undisturbed = train(other)
    for stage in STAGES:
        engine = tiny_engine(zero(stage))
        outputs = engine.forward(
            tiny_microbatches(9, engine.layout),
            lambda model, m: model(m.tokens_BS, m.forward_state()),
            lambda logits, _: logits,
        )
        assert not outputs[0].requires_grad
        found = []
        for step in range(3):
            evaluated = engine.evaluate(tiny_microbatches(9, engine.layout), NextTokenLoss())
            if step == 0:
                for mine, theirs in zip(evaluated, expected, strict=True):
                    assert mine.tolist() == pytest.approx(theirs.tolist(), rel=1e-6)
            metrics = engine.step(tiny_microbatches(step, engine.layout), NextTokenLoss(), LR)
            found.append((metrics.loss, metrics.grad_norm))
        torch.testing.assert_close(torch.tensor(found), torch.tensor(undisturbed), rtol=1e-5, atol=0)


@in_world(2)
def test_the_split_into_microbatches_changes_nothing() -> None:
    """Also where it is not the one of the configuration."""
    for stage in STAGES:
        engines = [tiny_engine(zero(stage)) for _ in range(2)]
        for step in range(2):
            found = []
            for engine, size in zip(engines, (1, 4), strict=True):
                microbatches = to_microbatches(tiny_batch(step), engine.layout, size)
                metrics = engine.step(microbatches, NextTokenLoss(), LR)
                found.append([metrics.loss, metrics.grad_norm])
            assert found[0] == pytest.approx(found[1], rel=1e-5), stage


@in_world(2)
def test_engines_of_other_layouts_may_take_turns() -> None:
    """DeepSpeed keeps the groups in one place for all engines of a process."""
    turns = [tiny_engine(zero(1, TP2)), tiny_engine(zero(2)), tiny_engine(zero(0)), tiny_engine(zero(3, TP2))]
    expected = train(tiny_engine(megatron()))
    for step in range(3):
        for engine in turns:
            metrics = engine.step(tiny_microbatches(step, engine.layout), NextTokenLoss(), LR)
            assert (metrics.loss, metrics.grad_norm) == pytest.approx(expected[step], rel=1e-5)


@in_world(2)
def test_a_frozen_model_in_zero_3_gives_the_same_loss_from_parted_weights() -> None:
    from megalm.engine.build import build_engine
    from megalm.parallel.layout import create_layout

    other = tiny_engine(megatron())
    expected = other.evaluate(tiny_microbatches(0, other.layout), NextTokenLoss())
    config = zero(3)
    engine = build_engine(config, create_layout(config.parallel), train=False)
    found = engine.evaluate(tiny_microbatches(0, engine.layout), NextTokenLoss())
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.tolist() == pytest.approx(theirs.tolist(), rel=1e-6)
    assert engine.model.decoder.layers[0].mlp.linear_fc1.weight.numel() == 0


OFFLOADED = {
    "ZeRO-1": (1, "offload.optimizer=cpu"),
    "ZeRO-2": (2, "offload.optimizer=cpu"),
    "ZeRO-3": (3, "offload.optimizer=cpu"),
    "ZeRO-3, weights too": (3, "offload.optimizer=cpu", "offload.parameters=cpu"),
}


def check_offloaded(dtype: str) -> None:
    """Three steps with the state on the CPU, beside three without, under every stage."""
    for stage, *offload in OFFLOADED.values():
        resident, moved = (tiny_engine(zero(stage, dtype, *more)) for more in ((), offload))
        expected, found = train(resident), train(moved)
        bound = 1e-5 if dtype == FP32 else 1e-3
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=bound, atol=0)
        if dtype == FP32:
            assert_close(weights(moved), weights(resident), 2e-5)


@pytest.mark.parametrize("dtype", [FP32, BF16])
@in_world(2)
def test_offloaded_to_the_cpu_the_same_numbers_come_out_of_torchs_adamw(dtype: str) -> None:
    with mock.patch.object(deepspeed_setup, "problem_of_operator", lambda *_: "no compiler"):
        check_offloaded(dtype)


@pytest.mark.slow
@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_offloaded_to_the_cpu_the_same_numbers_come_out_of_deepspeeds_cpu_adam(dtype: str) -> None:
    if not run_distributed(runs_in_cpu_adam, 1)[0]:
        pytest.skip("it cannot be compiled here")
    run_distributed(check_offloaded, 2, dtype)


def runs_in_cpu_adam() -> bool:
    engine = tiny_engine(zero(1, "offload.optimizer=cpu"))
    return type(engine.runner.basic_optimizer).__name__ == "DeepSpeedCPUAdam"


@in_world(2)
def test_without_asynchronous_io_offloading_to_a_disk_is_refused() -> None:
    with (
        mock.patch.object(deepspeed_setup, "problem_of_operator", lambda *_: "no libaio"),
        pytest.raises(UserError, match="libaio-dev") as caught,
    ):
        tiny_engine(zero(3, "offload.optimizer=nvme", "offload.nvme_path=/nowhere"))
    assert "\n" not in str(caught.value)
