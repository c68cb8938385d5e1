"""Interleaved and unevenly cut pipelines train like one process."""

import pytest

from tests.parity.runs import FP32, FP64, assert_same_run, run

TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
PP2 = "parallel.pipeline_model_parallel_size=2"
PP4 = "parallel.pipeline_model_parallel_size=4"
VP2 = "parallel.virtual_pipeline_model_parallel_size=2"
VP4 = "parallel.virtual_pipeline_model_parallel_size=4"
CP2 = "parallel.context_parallel_size=2"
ZERO1 = "parallel.zero_stage=1"
OVERLAP = "parallel.overlap_p2p_comm=true"
COUNT_EMBEDDING = "parallel.account_for_embedding_in_pipeline_split=true"
COUNT_LOSS = "parallel.account_for_loss_in_pipeline_split=true"
REPEATS = 3


def layers(*counts: int) -> str:
    return f"parallel.pipeline_layers={list(counts)}"


# processes, layers of the model, overrides
INTERLEAVED = {
    "PP2xVP2": (2, 4, (PP2, VP2)),
    "PP2xVP2 overlapped": (2, 4, (PP2, VP2, OVERLAP)),
    "PP4xVP2": (4, 8, (PP4, VP2)),
    "PP4xVP2 overlapped": (4, 8, (PP4, VP2, OVERLAP)),
}
COMBINED = {
    "PP2xVP2xTP2": (4, 4, (PP2, VP2, TP2)),
    "PP2xVP2xTP2+SP overlapped": (4, 4, (PP2, VP2, TP2, SP, OVERLAP)),
    "PP2xVP2xCP2 overlapped": (4, 4, (PP2, VP2, CP2, OVERLAP)),
    "PP2xVP2xDP2": (4, 4, (PP2, VP2)),
    "PP2xVP4 of one layer or none": (2, 6, (PP2, VP4, COUNT_EMBEDDING, COUNT_LOSS)),
    "PP2xVP2 uneven": (2, 6, (PP2, VP2, layers(1, 2, 2, 1))),
    "PP2 uneven": (2, 4, (PP2, layers(3, 1))),
    "PP4 uneven": (4, 6, (PP4, layers(1, 3, 2, 0))),
    "PP4 that counts the embedding and the loss": (4, 6, (PP4, COUNT_EMBEDDING, COUNT_LOSS)),
}
MODELS = {"gpt2-tied": "gpt2-tiny", "llama-untied": "llama-tiny"}


@pytest.mark.parametrize("preset", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("layout", INTERLEAVED)
def test_interleaved_pipeline_trains_like_one_process_on_every_repeat(layout: str, preset: str) -> None:
    """Sending a tensor that is freed too early, or two at a time between the same ranks, changes some repeat."""
    world_size, depth, overrides = INTERLEAVED[layout]
    model = f"model.num_layers={depth}"
    first = run(world_size, preset, (model, *overrides))
    assert_same_run(first, run(1, preset, (model,)), FP64)
    for _ in range(REPEATS - 1):
        again = run.__wrapped__(world_size, preset, (model, *overrides))
        assert (again.losses, again.norms) == (first.losses, first.norms)


@pytest.mark.parametrize("preset", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("layout", COMBINED)
def test_layers_in_any_parts_train_like_one_process(layout: str, preset: str) -> None:
    world_size, depth, overrides = COMBINED[layout]
    model = f"model.num_layers={depth}"
    assert_same_run(run(world_size, preset, (model, *overrides)), run(1, preset, (model,)), FP64)


@pytest.mark.parametrize("preset", MODELS.values(), ids=MODELS)
def test_interleaved_pipeline_with_sharded_optimizer_trains_like_one_process_in_fp32(preset: str) -> None:
    # a gradient element that is rounding alone must not become a full step: eps above the rounding
    fp32 = ("precision.dtype=fp32", "optimizer.adam_eps=1e-5")
    found = run(4, preset, (*fp32, PP2, VP2, ZERO1))
    assert_same_run(found, run(1, preset, fp32), FP32)


def test_interleaved_pipeline_keeps_documents_apart() -> None:
    expected = run(1, "llama-tiny", (), resets=True)
    assert_same_run(run(2, "llama-tiny", (PP2, VP2), resets=True), expected, FP64)
