"""Reducing gradients and gathering weights while the ranks compute changes no bit, whatever happens between the steps."""

from typing import Any

import pytest
import torch
from torch import Tensor

from megalm.engine.megatron import MegatronEngine
from megalm.train.pretrain import NextTokenLoss
from tests.engine.test_optimizer import spoil
from tests.parity import runs as parity
from tests.tiny import LR, tiny_config, tiny_engine, tiny_microbatches
from tests.worlds import in_world

TP2 = "parallel.tensor_model_parallel_size=2"
PP2 = "parallel.pipeline_model_parallel_size=2"
EP2 = "parallel.expert_model_parallel_size=2"
EXPERTS = ("model.num_layers=2", "model.moe.aux_loss_coeff=0.1", "model.moe.shared_expert_ffn_hidden_size=48")
VP2 = (PP2, "parallel.virtual_pipeline_model_parallel_size=2", "model.num_layers=4")
ZERO1 = "parallel.zero_stage=1"
FP32, BF16 = "precision.dtype=fp32", "precision.dtype=bf16"
BUCKETS = ("parallel.overlap_grad_reduce=true", "parallel.ddp_bucket_size=10000")
GATHER = (*BUCKETS, "parallel.overlap_param_gather=true", ZERO1)
# clipping multiplies by a norm that is summed over other pieces; without it everything else is the same bits
BASE = ("optimizer.clip_grad=0", "optimizer.weight_decay=0.3")


def tensors_of(engine: MegatronEngine) -> dict[str, Tensor]:
    """What this rank would write to a checkpoint."""
    return {name: shard.data for name, shard in engine.state().items()}


def whole_weights(engine: MegatronEngine) -> dict[str, Tensor]:
    return {
        f"{number}.{name}": parameter.detach().clone()
        for number, chunk in enumerate(engine.chunks)
        for name, parameter in chunk.named_parameters()
    }


def bucket_groups(engine: MegatronEngine) -> list[Any]:
    return [group for ddp in engine.ddp_chunks for group in ddp.bucket_groups]


def overlapped_reductions(engine: MegatronEngine) -> list[int]:
    """A list that grows by the number of sums under way at the end of each step's backward pass."""
    finalize, begun = engine.core.finalize_model_grads_func, []

    def count_and_finalize(*arguments: Any, **options: Any) -> None:
        begun.append(sum(group.grad_reduce_handle is not None for group in bucket_groups(engine)))
        finalize(*arguments, **options)

    engine.core.finalize_model_grads_func = count_and_finalize
    return begun


def history(*overrides: str) -> tuple[list[Any], list[float], dict[str, Tensor], MegatronEngine, list[int]]:
    """(losses and evaluations, norms, final state, engine, overlapped sums) of seven steps, a spoilt one among them."""
    engine = tiny_engine(tiny_config(*overrides))
    begun, events, norms, states = overlapped_reductions(engine), [], [], {}
    for step in range(7):
        batches = tiny_microbatches(step, engine.layout)
        if step == 3:
            spoil("nan", engine, batches, rank=0)
        metrics = engine.step(batches, NextTokenLoss(), LR)
        assert metrics.skipped == (step == 3)
        events.append(metrics.skipped or metrics.loss)
        norms.append(0.0 if metrics.skipped else metrics.grad_norm)
        if step in (1, 3):
            events.append(engine.evaluate(tiny_microbatches(100, engine.layout), NextTokenLoss()))
        if step in (2, 4):  # right after a step, and none of the runs may trip over it
            states |= {f"{step} {name}": tensor for name, tensor in tensors_of(engine).items()}
    states |= tensors_of(engine)
    return events, norms, states, engine, begun


def check_same(plain: tuple[str, ...], overlapped: tuple[str, ...], *common: str) -> None:
    expected, expected_norms, expected_states, _, _ = history(*common, *BASE, *plain)
    found, norms, states, engine, begun = history(*common, *BASE, *plain, *overlapped)
    assert found == expected
    assert norms == pytest.approx(expected_norms, rel=1e-6)
    assert states.keys() == expected_states.keys()
    for name, tensor in expected_states.items():
        assert torch.equal(states[name], tensor), name
    groups = len(bucket_groups(engine))
    assert groups >= 3 or not engine.layout.is_first_stage, "the library makes buckets on the first stage"
    assert begun == [0] + [groups] * 6, "sums did not begin before the backward pass ended"


@pytest.mark.parametrize(
    ("preset", "plain", "overlapped"),
    [
        ("llama-tiny", (), BUCKETS),
        ("llama-tiny", (ZERO1, FP32), BUCKETS),
        ("llama-tiny", (ZERO1, FP32), GATHER),
        ("gpt2-tiny", (ZERO1, BF16), GATHER),
        ("llama-tiny", (ZERO1, FP32, "parallel.context_parallel_size=2"), GATHER),
        ("llama-tiny", (ZERO1, BF16, "train.recompute.granularity=full"), GATHER),
    ],
    ids=["DP2", "DP2+ZeRO-1", "DP2+ZeRO-1+gather", "tied-bf16+gather", "CP2+gather", "recompute+gather"],
)
@in_world(2)
def test_overlap_between_two_copies_changes_no_bit(
    preset: str, plain: tuple[str, ...], overlapped: tuple[str, ...]
) -> None:
    check_same(plain, overlapped, preset)


@pytest.mark.parametrize("preset", ["gpt2-tiny", "llama-tiny"])
@pytest.mark.parametrize("layout", [(TP2,), (PP2,), VP2], ids=["TP2xDP2", "PP2xDP2", "PP2/VP2xDP2"])
@in_world(4)
def test_overlap_beside_other_axes_changes_no_bit(layout: tuple[str, ...], preset: str) -> None:
    check_same(layout, BUCKETS, preset)
    check_same((*layout, ZERO1, FP32), GATHER, preset)


@pytest.mark.parametrize(
    ("world_size", "preset", "model", "layout"),
    [
        (2, "bert-tiny", ("task=mlm",), ()),
        (2, "megatron-bert-tiny", ("task=mlm",), ()),
        (2, "mixtral-tiny", EXPERTS, (EP2,)),
        (4, "mixtral-tiny", EXPERTS, (EP2, TP2)),
    ],
    ids=["BERT", "MegatronBert", "EP2", "EP2xTP2"],
)
def test_overlap_suits_encoders_and_experts(
    world_size: int, preset: str, model: tuple[str, ...], layout: tuple[str, ...]
) -> None:
    fp32 = (*model, FP32, "optimizer.adam_eps=1e-5")
    parity.assert_same_run(
        parity.run(world_size, preset, (*fp32, *GATHER, *layout)), parity.run(1, preset, fp32), parity.FP32
    )


@pytest.mark.parametrize("preset", ["gpt2-tiny", "llama-tiny"])
@in_world(2)
def test_weights_are_behind_until_they_are_gathered(preset: str) -> None:
    """Each reader but the training pass itself asks for the gather: state and evaluation see the update."""
    engines = [
        tiny_engine(tiny_config(preset, *BASE, FP32, ZERO1, *more)) for more in ((), GATHER, GATHER, GATHER)
    ]
    for engine in engines:
        engine.step(tiny_microbatches(0, engine.layout), NextTokenLoss(), LR)
    plain, gathered, saved, evaluated = engines
    expected = whole_weights(plain)
    behind = whole_weights(gathered)
    assert any(not torch.equal(behind[name], weight) for name, weight in expected.items())
    gathered.gather_weights()
    saved.state()
    batches = tiny_microbatches(1, evaluated.layout)
    assert evaluated.evaluate(batches, NextTokenLoss()) == plain.evaluate(batches, NextTokenLoss())
    for engine in (gathered, saved, evaluated):
        for name, weight in whole_weights(engine).items():
            assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize("kind", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("zero", ["0", "1"])
@in_world(2)
def test_gradients_are_summed_in_the_format_asked_for(kind: str, zero: str) -> None:
    """By what reaches the collective, and by the digits that are left of a sum over two ranks."""
    weights = "bf16" if kind == "fp32" else kind
    config = tiny_config(
        "llama-tiny",
        f"precision.dtype={weights}",
        f"precision.grad_reduce_dtype={kind}",
        f"parallel.zero_stage={zero}",
    )
    engine = tiny_engine(config)
    engine.step(tiny_microbatches(0, engine.layout), NextTokenLoss(), LR)
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[kind]
    for buffer in (buffer for ddp in engine.ddp_chunks for buffer in ddp.buffers):
        assert {bucket.grad_data.dtype for bucket in buffer.buckets} == {wanted}
    gradients = torch.cat([p.grad.flatten() for p in engine.optimizer.get_parameters() if p.grad is not None])
    assert gradients.dtype == torch.float32 and gradients.any()
