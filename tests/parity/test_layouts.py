"""Every layout trains like one process: gradients, losses, gradient norms and weights of ten steps."""

import pytest

from tests.parity.runs import FP32, FP64, assert_same_run, run

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
