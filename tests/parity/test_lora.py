"""Adapters train alike under every layout: losses, norms, gradients and weights of ten steps against one process."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from megalm.model.lora import is_adapter
from megalm.train.pretrain import NextTokenLoss
from tests.parity.runs import FP32, FP64, Run, assert_same_run, run
from tests.tiny import tiny_config, tiny_engine, tiny_microbatches
from tests.worlds import in_world

LORA = ("lora.rank=4", "lora.alpha=100", "run.load=unused")  # norms beyond the limit of clipping
TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
PP2 = "parallel.pipeline_model_parallel_size=2"
LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "TP2": (2, (TP2,)),
    "TP2+SP": (2, (TP2, SP)),
    "PP2": (2, (PP2,)),
    "TP2xPP2+SP": (4, (TP2, SP, PP2)),
    "CP2": (2, ("parallel.context_parallel_size=2",)),
    "DP2": (2, ()),
    "PP2, recomputed": (2, (PP2, "train.recompute.granularity=full")),
}


def comparable(found: Run) -> Run:
    """b begins at zero, and so do gradients of a: those of the first step say nothing, the weights after ten do."""
    gradients = {name: part for name, part in found.gradients.items() if not name.endswith(".lora.a")}
    weights = {name: part for name, part in found.weights.items() if ".lora." in name}
    return replace(found, gradients=gradients, weights=weights)


@pytest.mark.parametrize("preset", ["gpt2-tiny", "llama-tiny"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_adapters_train_as_in_one_process(layout: str, preset: str) -> None:
    world_size, overrides = LAYOUTS[layout]
    found = run(world_size, preset, (*LORA, *overrides))
    assert_same_run(comparable(found), comparable(run(1, preset, LORA)), FP64)


@pytest.mark.parametrize("layout", [("parallel.expert_model_parallel_size=2",), (TP2,)], ids=["EP2", "TP2"])
def test_adapters_around_experts_train_as_in_one_process(layout: tuple[str, ...]) -> None:
    found = run(2, "mixtral-tiny", (*LORA, *layout))
    assert_same_run(comparable(found), comparable(run(1, "mixtral-tiny", LORA)), FP64)


EP2 = "parallel.expert_model_parallel_size=2"
EXPERTS = (*LORA, "lora.experts=true")


@pytest.mark.parametrize(
    ("world_size", "layout"),
    [(2, (TP2,)), (2, (TP2, SP)), (2, (EP2,)), (4, (EP2, TP2, SP)), (2, ())],
    ids=["TP2", "TP2+SP", "EP2", "EP2xTP2+SP", "DP2"],
)
def test_adapters_of_experts_train_as_in_one_process(world_size: int, layout: tuple[str, ...]) -> None:
    found = run(world_size, "mixtral-tiny", (*EXPERTS, *layout))
    assert any(".experts." in name for name in found.gradients)
    assert_same_run(comparable(found), comparable(run(1, "mixtral-tiny", EXPERTS)), FP64)


# rounding alone must not become a full step: gradients of a begin at zero
IN_FP32 = (*LORA, "precision.dtype=fp32", "optimizer.adam_eps=1e-3")


@pytest.mark.parametrize(
    ("world_size", "stage", "layout"),
    [(2, 0, ()), (4, 2, (TP2, SP)), (2, 3, ())],
    ids=["ZeRO-0", "ZeRO-2 x TP2+SP", "ZeRO-3"],
)
def test_adapters_train_on_deepspeed_as_in_one_process(
    world_size: int, stage: int, layout: tuple[str, ...]
) -> None:
    deepspeed = ("engine=deepspeed", f"parallel.zero_stage={stage}", *layout)
    found = run(world_size, "llama-tiny", (*IN_FP32, *deepspeed))
    assert_same_run(comparable(found), comparable(run(1, "llama-tiny", IN_FP32)), FP32)


@in_world(2)
def test_dropout_of_adapters_hangs_on_seed_and_step_alone() -> None:
    """Each rank of SP drops of its own part of the sequence; what all ranks hold alike stays alike."""
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    config = tiny_config("llama-tiny", *LORA, TP2, SP, "lora.dropout=0.5")
    plain = tiny_config("llama-tiny", *LORA, TP2, SP)
    losses = []
    for chosen in (plain, config, config):
        engine = tiny_engine(chosen)
        microbatches = tiny_microbatches(0, engine.layout)
        losses.append([])
        for _ in range(3):
            losses[-1].append(engine.step(microbatches, NextTokenLoss(), 0.05).loss)
            with get_cuda_rng_tracker().fork():  # what else is drawn meanwhile, another amount each time
                torch.rand(len(losses))
    assert losses[1] == losses[2] != losses[0]
    for name, parameter in engine.model.named_parameters():
        if is_adapter(name) and not getattr(parameter, "tensor_model_parallel", False):
            parts = [torch.empty_like(parameter) for _ in range(2)]
            dist.all_gather(parts, parameter.detach(), group=engine.layout.groups.tp)
            assert torch.equal(*parts), name


def test_only_the_adapters_learn() -> None:
    before = run(1, "llama-tiny", (*LORA, "optimizer.weight_decay=0.5"))
    names = {name for name in before.gradients}
    assert names and all(".lora." in name for name in names)
    other = run(1, "llama-tiny", (*LORA, "lora.rank=8"))
    for name, tensor in before.weights.items():
        if ".lora." not in name:
            assert torch.equal(tensor, other.weights[name]), name
