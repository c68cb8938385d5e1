"""Partly frozen models train alike under every layout, and what is frozen stays bit for bit as it was."""

from dataclasses import replace

import pytest
import torch

from tests.parity.runs import FP32, FP64, Run, assert_same_run, run

TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
PP2 = "parallel.pipeline_model_parallel_size=2"
VP2 = "parallel.virtual_pipeline_model_parallel_size=2"
PP4 = "parallel.pipeline_model_parallel_size=4"
FULL = "train.recompute.granularity=full"
SELECTIVE = ("train.recompute.granularity=selective", "train.recompute.modules=[core_attn, mlp]")
ZERO1 = "parallel.zero_stage=1"
DEEPSPEED = "engine=deepspeed"

# The 4 layers lie on stages 0 1 2 3 (PP4), 0 0 1 1 (PP2), 0 1 0 1 (VP2).
LAST = ("train.train_last_layers=1",)  # stages without anything to train
FIRST = ("train.freeze=['decoder.layers.[1-3].*', decoder.final_layernorm.*]",)
BIASES = ("train.freeze=['*', '!*.bias']",)  # a linear layer's bias without its weight
CLIP = 0.01  # norms of few weights are small
FROZEN: dict[str, tuple[str, tuple[str, ...]]] = {
    "last layer": ("llama-tiny", (*LAST, "model.tie_embeddings=false")),
    "last layer, tied": ("gpt2-tiny", LAST),
    "biases": ("gpt2-tiny", BIASES),
    "BERT's last layer": ("bert-tiny", (*LAST, "task=mlm")),
    "experts' last layer": ("mixtral-tiny", LAST),
    "all but the experts": ("mixtral-tiny", ("train.freeze=['*', '!*.experts.*']",)),
    "embeddings and first layer trained": ("gpt2-tiny", FIRST),
}
LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "TP2": (2, (TP2,)),
    "TP2+SP": (2, (TP2, SP)),
    "PP2xDP2": (4, (PP2,)),
    "PP2xVP2": (2, (PP2, VP2)),
    "PP4, recomputed": (4, (PP4, FULL)),
    "TP2xPP2+SP": (4, (TP2, SP, PP2)),
    "EP2": (2, ("parallel.expert_model_parallel_size=2",)),
    "recomputed": (1, (FULL,)),
    "modules recomputed": (1, SELECTIVE),
}
SHARDED: dict[str, tuple[int, tuple[str, ...]]] = {
    "DP2+ZeRO-1": (2, (ZERO1,)),
    "PP2xDP2+ZeRO-1, overlapped": (4, (PP2, ZERO1, "parallel.overlap_grad_reduce=true")),
    "DeepSpeed, TP2+SP": (2, (DEEPSPEED, TP2, SP)),
    "DeepSpeed, ZeRO-1": (2, (DEEPSPEED, ZERO1)),
    "DeepSpeed, ZeRO-2 x TP2": (4, (DEEPSPEED, "parallel.zero_stage=2", TP2)),
    "DeepSpeed, ZeRO-3": (2, (DEEPSPEED, "parallel.zero_stage=3", FULL)),
}


def trained(found: Run) -> Run:
    """Without the weights that are frozen: zero some of them, so that they compare with nothing."""
    return replace(found, weights={name: found.weights[name] for name in found.gradients})


@pytest.mark.parametrize(
    ("frozen", "layout"),
    [
        *(("last layer, tied", layout) for layout in LAYOUTS if layout != "EP2"),
        *((frozen, "TP2+SP") for frozen in FROZEN if frozen != "last layer, tied"),
        ("last layer", "PP2xVP2"),
        ("BERT's last layer", "PP2xDP2"),
        ("BERT's last layer", "recomputed"),
        ("experts' last layer", "PP2xDP2"),
        ("all but the experts", "EP2"),
        ("embeddings and first layer trained", "PP4, recomputed"),
    ],
)
def test_a_partly_frozen_model_trains_like_one_process_in_fp64(frozen: str, layout: str) -> None:
    preset, options = FROZEN[frozen][0], (*FROZEN[frozen][1], f"optimizer.clip_grad={CLIP}")
    world_size, overrides = LAYOUTS[layout]
    found = run(world_size, preset, (*options, *overrides))
    assert_same_run(trained(found), trained(run(1, preset, options)), FP64, CLIP)


@pytest.mark.parametrize("layout", SHARDED)
@pytest.mark.parametrize("frozen", ["last layer, tied", "biases"])
def test_a_partly_frozen_model_trains_alike_with_shared_out_optimizers(frozen: str, layout: str) -> None:
    preset, options = FROZEN[frozen]
    world_size, overrides = SHARDED[layout]
    fp32 = (*options, f"optimizer.clip_grad={CLIP}", "precision.dtype=fp32", "optimizer.adam_eps=1e-5")
    found = run(world_size, preset, (*fp32, *overrides))
    assert_same_run(trained(found), trained(run(1, preset, fp32)), FP32, CLIP)


@pytest.mark.parametrize("layout", ["one process", "PP2xDP2"])
def test_what_is_frozen_stays_and_what_is_not_is_all_that_has_gradients(layout: str) -> None:
    world_size, overrides = ({"one process": (1, ())} | LAYOUTS)[layout]
    one = run(world_size, "gpt2-tiny", (*LAST, *overrides))
    two = run(world_size, "gpt2-tiny", ("train.train_last_layers=2", *overrides))
    assert {name.split(".")[2] for name in one.gradients if ".layers." in name} == {"3"}
    assert {name.split(".")[2] for name in two.gradients if ".layers." in name} == {"2", "3"}
    assert {name for name in one.gradients if ".layers." not in name} == {
        "decoder.final_layernorm.weight",
        "decoder.final_layernorm.bias",
    }
    for name, weight in one.weights.items():
        assert torch.equal(weight, two.weights[name]) == (name not in two.gradients), name
