"""Context parallelism trains like one process: every kind of position, mask and axis beside it."""

import pytest

from tests.parity.runs import FP32, FP64, assert_same_run, run

CP2, CP4 = (f"parallel.context_parallel_size={size}" for size in (2, 4))
TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
PP2 = "parallel.pipeline_model_parallel_size=2"

# What the processes do not share by CP, TP and PP, they share by DP.
LAYOUTS = {
    "CP2": (2, (CP2,)),
    "CP4": (4, (CP4,)),
    "CP2xTP2": (4, (CP2, TP2)),
    "CP2xTP2+SP": (4, (CP2, TP2, SP)),
    "CP2xPP2": (4, (CP2, PP2)),
    "CP2xDP2": (4, (CP2,)),
}


@pytest.mark.parametrize("preset", ["gpt2-tiny", "llama-tiny"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_trains_like_one_process_in_fp64(layout: str, preset: str) -> None:
    world_size, overrides = LAYOUTS[layout]
    assert_same_run(run(world_size, preset, overrides), run(1, preset, ()), FP64)


@pytest.mark.parametrize("preset", ["gpt2-tiny", "llama-tiny"])
@pytest.mark.parametrize("layout", ["CP2", "CP4", "CP2xTP2+SP", "CP2xPP2"])
def test_documents_train_like_one_process(layout: str, preset: str) -> None:
    """Documents begin anywhere, so they lie across the borders of the ranks' chunks."""
    world_size, overrides = LAYOUTS[layout]
    found = run(world_size, preset, overrides, resets=True)
    assert_same_run(found, run(1, preset, (), resets=True), FP64)


@pytest.mark.parametrize("position", ["alibi", "sinusoidal", "none"])
def test_other_positions_train_like_one_process(position: str) -> None:
    setting = f"model.position_embedding={position}"
    expected = run(1, "llama-tiny", (setting,))
    assert_same_run(run(4, "llama-tiny", (setting, CP2, TP2)), expected, FP64)


@pytest.mark.parametrize(
    ("kernel", "recompute"),
    [("torch", "none"), ("torch", "selective"), ("torch", "full"), ("matmul", "none"), ("plain", "none")],
)
def test_kernels_with_recompute_train_like_one_process(kernel: str, recompute: str) -> None:
    """The backward pass gathers keys and values anew; recompute does so in its second forward pass."""
    settings = (CP2, f"model.attention={kernel}", f"train.recompute.granularity={recompute}")
    assert_same_run(run(2, "llama-tiny", settings), run(1, "llama-tiny", ()), FP64)


@pytest.mark.parametrize("preset", ["gpt2-tiny", "llama-tiny"])
@pytest.mark.parametrize(("world_size", "overrides"), [(2, (CP2,)), (4, (CP2,)), (4, (CP2, TP2, SP))])
def test_sharded_optimizer_trains_like_one_process_in_fp32(
    world_size: int, overrides: tuple[str, ...], preset: str
) -> None:
    """ZeRO-1 shares the optimizer's state over the CP ranks too."""
    fp32 = ("precision.dtype=fp32", "optimizer.adam_eps=1e-5")
    found = run(world_size, preset, (*fp32, "parallel.zero_stage=1", *overrides))
    assert_same_run(found, run(1, preset, fp32), FP32)
