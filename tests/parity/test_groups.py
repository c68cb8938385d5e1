"""Groups and layers with learning rates of their own train alike under every layout and with shared-out optimizers."""

import pytest

from tests.parity.runs import FP32, FP64, assert_same_run, run
from tests.parity.test_freeze import LAYOUTS, SHARDED

GROUPS = (
    "model.tie_embeddings=true",
    "optimizer.layer_lr_decay=0.7",
    "optimizer.groups=[{name: second, match: ['decoder.layers.1.*'], lr_scale: 3, weight_decay: 0.5}, "
    "{name: norms, match: ['*norm*'], lr_scale: 2}]",
)


@pytest.mark.parametrize("layout", ["TP2+SP", "PP2xVP2"])
def test_groups_train_like_one_process_in_fp64(layout: str) -> None:
    world_size, overrides = LAYOUTS[layout]
    expected = run(1, "llama-tiny", GROUPS)
    assert_same_run(run(world_size, "llama-tiny", (*GROUPS, *overrides)), expected, FP64)


@pytest.mark.parametrize(
    "layout", ["DP2+ZeRO-1", "DeepSpeed, ZeRO-1", "DeepSpeed, ZeRO-2 x TP2", "DeepSpeed, ZeRO-3"]
)
def test_groups_train_alike_with_shared_out_optimizers(layout: str) -> None:
    world_size, overrides = SHARDED[layout]
    fp32 = (*GROUPS, "precision.dtype=fp32", "optimizer.adam_eps=1e-5")
    expected = run(1, "llama-tiny", fp32)
    assert_same_run(run(world_size, "llama-tiny", (*fp32, *overrides)), expected, FP32)
