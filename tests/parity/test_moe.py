"""A mixture of experts trains like one process under every layout, with all that its router adds to the loss."""

import pytest

from tests.parity.runs import FP32, FP64, assert_same_run, run

TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
PP2 = "parallel.pipeline_model_parallel_size=2"
VP2 = "parallel.virtual_pipeline_model_parallel_size=2"
CP2 = "parallel.context_parallel_size=2"
EP2 = "parallel.expert_model_parallel_size=2"
EP4 = "parallel.expert_model_parallel_size=4"
ZERO1 = "parallel.zero_stage=1"
ALL_TO_ALL = "model.moe.dispatcher=alltoall"

MIXTURE = (
    "model.num_layers=2",
    "model.moe.aux_loss_coeff=0.1",
    "model.moe.z_loss_coeff=0.05",
    "model.moe.shared_expert_ffn_hidden_size=48",
)
# every second layer has experts, narrower than its dense neighbours' MLPs
ALTERNATING = (
    "model.moe.aux_loss_coeff=0.1",
    "model.moe.layer_frequency=2",
    "model.moe.moe_ffn_hidden_size=40",
    "model.moe.router_top_k=3",
    "model.moe.score_function=sigmoid",
)
# the second pipeline stage has no experts
SPARSE = ("model.moe.aux_loss_coeff=0.1", "model.moe.layer_frequency=4")
LAYOUTS = {
    "DP2": (2, ()),
    "TP2": (2, (TP2,)),
    "TP2+SP": (2, (TP2, SP)),
    "EP2": (2, (EP2,)),
    "EP4": (4, (EP4,)),
    "EP2xTP2": (4, (EP2, TP2)),
    "EP2xTP2+SP": (4, (EP2, TP2, SP)),
    "EP2xPP2": (4, (EP2, PP2)),
    "EP2xCP2": (2, (EP2, CP2)),
    "EP2xCP2xTP2+SP": (4, (EP2, CP2, TP2, SP)),
}
SHARDED_LAYOUTS = {
    "EP2+ZeRO-1": (2, (EP2, ZERO1)),
    "EP2xDP2+ZeRO-1": (4, (EP2, ZERO1)),
    "EP2xTP2+SP+ZeRO-1": (4, (EP2, TP2, SP, ZERO1)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_trains_like_one_process_in_fp64(layout: str) -> None:
    world_size, overrides = LAYOUTS[layout]
    found = run(world_size, "mixtral-tiny", (*MIXTURE, *overrides))
    assert_same_run(found, run(1, "mixtral-tiny", MIXTURE), FP64)


@pytest.mark.parametrize("layout", ["EP2", "EP2xTP2"])
def test_all_to_all_trains_like_one_process_that_gathers(layout: str) -> None:
    world_size, overrides = LAYOUTS[layout]
    found = run(world_size, "mixtral-tiny", (*MIXTURE, *overrides, ALL_TO_ALL))
    assert_same_run(found, run(1, "mixtral-tiny", MIXTURE), FP64)


@pytest.mark.parametrize(
    ("model", "layout"), [(ALTERNATING, (EP2, TP2, SP)), (ALTERNATING, (EP2, PP2, VP2)), (SPARSE, (EP2, PP2))]
)
def test_dense_layers_between_train_like_one_process(model: tuple[str, ...], layout: tuple[str, ...]) -> None:
    found = run(4, "mixtral-tiny", (*model, *layout))
    assert_same_run(found, run(1, "mixtral-tiny", model), FP64)


@pytest.mark.parametrize("layout", SHARDED_LAYOUTS)
def test_sharded_optimizer_trains_like_one_process_in_fp32(layout: str) -> None:
    world_size, overrides = SHARDED_LAYOUTS[layout]
    # a gradient element that is rounding alone must not become a full step: eps above the rounding
    fp32 = (*MIXTURE, "precision.dtype=fp32", "optimizer.adam_eps=1e-5")
    found = run(world_size, "mixtral-tiny", (*fp32, *overrides))
    assert_same_run(found, run(1, "mixtral-tiny", fp32), FP32)


@pytest.mark.parametrize(("world_size", "layout", "rows"), [(1, (), 1), (1, (), 8), (2, (EP2,), 4)])
def test_size_of_the_microbatch_does_not_show(world_size: int, layout: tuple[str, ...], rows: int) -> None:
    found = run(world_size, "mixtral-tiny", (*MIXTURE, *layout), micro_batch_size=rows)
    assert_same_run(found, run(1, "mixtral-tiny", MIXTURE), FP64)


def test_recomputed_layers_count_their_tokens_once() -> None:
    recomputed = (*MIXTURE, "train.recompute.granularity=full")
    assert_same_run(run(2, "mixtral-tiny", (*recomputed, EP2)), run(1, "mixtral-tiny", MIXTURE), FP64)
