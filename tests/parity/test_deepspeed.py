"""Engine deepspeed trains like engine megatron in one process: gradients, losses, norms and weights of ten steps."""

import pytest

from tests.parity.runs import FP32, assert_same_run, run

TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
# as for the sharded optimizer of engine megatron: rounding alone must not become a full step
SETTINGS = ("precision.dtype=fp32", "optimizer.adam_eps=1e-5")
LAYOUTS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "one process": (1, 0, ()),
    "DP2": (2, 0, ()),
    "DP2+ZeRO-1": (2, 1, ()),
    "DP2+ZeRO-2": (2, 2, ()),
    "DP2+ZeRO-3": (2, 3, ()),
    "DP4+ZeRO-3": (4, 3, ()),
    "TP2": (2, 0, (TP2,)),
    "TP2xDP2+ZeRO-1": (4, 1, (TP2,)),
    "TP2+SPxDP2+ZeRO-2": (4, 2, (TP2, SP)),
    "TP2xDP2+ZeRO-3": (4, 3, (TP2,)),
    "TP2+SPxDP2+ZeRO-3": (4, 3, (TP2, SP)),
}


@pytest.mark.parametrize("preset", ["gpt2-tiny", "llama-tiny"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_deepspeed_trains_like_megatron_in_one_process(layout: str, preset: str) -> None:
    world_size, stage, overrides = LAYOUTS[layout]
    expected = run(1, preset, SETTINGS)
    found = run(
        world_size, preset, (*SETTINGS, "engine=deepspeed", f"parallel.zero_stage={stage}", *overrides)
    )
    assert_same_run(found, expected, FP32)


@pytest.mark.parametrize("stage", [1, 3])
def test_document_resets_train_like_megatron(stage: int) -> None:
    expected = run(1, "llama-tiny", SETTINGS, resets=True)
    overrides = (*SETTINGS, "engine=deepspeed", f"parallel.zero_stage={stage}", TP2)
    assert_same_run(run(4, "llama-tiny", overrides, resets=True), expected, FP32)
