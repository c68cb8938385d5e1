"""Context parallelism in the engine: weights of the loss, validation, outputs and dropout. Cases from public trackers are named."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from megalm.engine.base import MicroBatch
from megalm.testing import run_distributed
from megalm.train.pretrain import NextTokenLoss
from tests.tiny import (
    LR,
    MICRO_BATCH,
    SEQUENCE,
    tiny_batch,
    tiny_config,
    tiny_engine,
    tiny_microbatches,
    to_microbatches,
)
from tests.worlds import in_world

CP2 = "parallel.context_parallel_size=2"
TP2 = "parallel.tensor_model_parallel_size=2"
PP2 = "parallel.pipeline_model_parallel_size=2"


def step_with_one_counted_token(overrides: tuple[str, ...], place: int) -> tuple[float, float, float]:
    """Loss, gradient norm and weight of a step."""
    engine = tiny_engine(tiny_config("llama-tiny", *overrides))
    batch = tiny_batch(0)
    batch.loss_mask_BS[:] = 0.0
    batch.loss_mask_BS[3, place] = 1.0
    metrics = engine.step(to_microbatches(batch, engine.layout, MICRO_BATCH), NextTokenLoss(), LR)
    return metrics.loss, metrics.grad_norm, metrics.weight


@pytest.mark.parametrize("place", [0, SEQUENCE // 2])
def test_a_rank_without_counted_tokens_changes_nothing(place: int) -> None:
    """Megatron-LM #1764 (NaN where a rank's tokens are all masked), #7452 finding 9 (divided by each rank's own count)."""
    expected = run_distributed(step_with_one_counted_token, 1, (), place)[0]
    for found in run_distributed(step_with_one_counted_token, 2, (CP2,), place):
        assert found == pytest.approx(expected, rel=1e-12)
    assert expected[2] == 1.0


def strides_of_tokens() -> list[tuple[int, ...]]:
    engine = tiny_engine(tiny_config("llama-tiny", CP2))
    return [microbatch.tokens_BS.stride() for microbatch in tiny_microbatches(0, engine.layout)]


def test_tokens_lie_row_by_row() -> None:
    """Megatron-Core's all-reduce leaves what is not contiguous unsummed, and some operators hand an index's strides on."""
    for strides in run_distributed(strides_of_tokens, 2):
        assert set(strides) == {(SEQUENCE // 2, 1)}


def evaluate_and_forward(resets: bool, overrides: tuple[str, ...]) -> tuple[Any, list[Any]]:
    """A validation's (sum, weight), and [(places, loss of each token there)] of this rank's microbatches."""
    engine = tiny_engine(tiny_config("llama-tiny", "model.num_layers=2", *overrides))
    microbatches = tiny_microbatches(0, engine.layout, resets)

    def places(microbatch: MicroBatch) -> torch.Tensor:
        if microbatch.context is None:
            return torch.arange(SEQUENCE)
        return microbatch.context.order(torch.device("cpu"))

    outputs = engine.forward(
        microbatches,
        lambda model, m: model(m.tokens_BS, m.forward_state(), labels=m.labels_BS),
        lambda output, m: (places(m), output.clone()),
    )
    return np.concatenate(engine.evaluate(microbatches, NextTokenLoss())), outputs


@pytest.mark.parametrize(("world_size", "overrides"), [(2, (CP2,)), (4, (CP2, PP2))], ids=["CP2", "CP2xPP2"])
@pytest.mark.parametrize("resets", [False, True])
def test_validation_and_outputs_are_those_of_one_process(
    world_size: int, overrides: tuple[str, ...], resets: bool
) -> None:
    """transformers #48167 (validation loss times CP), axolotl #3608 (documents not kept apart)."""
    expected, outputs = run_distributed(evaluate_and_forward, 1, resets, ())[0]
    ranks = run_distributed(evaluate_and_forward, world_size, resets, overrides)
    for found, _ in ranks:
        assert found == pytest.approx(expected, rel=1e-12)
    for number, (_, loss_BS) in enumerate(outputs):
        together_BS = torch.full_like(loss_BS, float("nan"))
        for _, parts in ranks:
            if parts:  # of the last stage
                places, part_BS = parts[number]
                together_BS[:, places] = part_BS
        torch.testing.assert_close(together_BS, loss_BS, rtol=1e-12, atol=0)


@in_world(4)
def test_ranks_draw_dropout_masks_of_their_own_and_tensor_parallel_replicas_the_same() -> None:
    """Megatron-LM #4828. Each token is a document, all are alike and have no positions: ranks differ by their masks alone."""
    for dropout in (0.0, 0.1):
        config = tiny_config(
            "gpt2-tiny", CP2, TP2, f"model.hidden_dropout={dropout}", "model.position_embedding=none"
        )
        engine = tiny_engine(config)
        batch = tiny_batch(0)
        for array, value in ((batch.tokens_BS, 7), (batch.labels_BS, 11), (batch.loss_mask_BS, 1.0)):
            array[:] = value
        batch.segments_BS = np.tile(np.arange(SEQUENCE), (len(batch.tokens_BS), 1))
        sums: list[float] = []

        class Recording(NextTokenLoss):
            def sum(self, output: torch.Tensor, microbatch: MicroBatch) -> torch.Tensor:
                sums.append(float(output.detach()))  # noqa: B023
                return output

        engine.step(to_microbatches(batch, engine.layout, MICRO_BATCH), Recording(), LR)
        of_ranks: list[Any] = [None] * 4
        dist.all_gather_object(of_ranks, (engine.layout.cp_rank, sums))
        by_share = [[found for share, found in of_ranks if share == wanted] for wanted in (0, 1)]
        assert all(left == pytest.approx(right, rel=1e-12) for left, right in by_share)
        same = [
            left == pytest.approx(right, rel=1e-9)
            for left, right in zip(*(s[0] for s in by_share), strict=True)
        ]
        assert not any(same) if dropout else all(same)


@in_world(2)
def test_tokens_of_another_layout_are_not_taken() -> None:
    engine = tiny_engine(tiny_config("llama-tiny", CP2))
    batch = MicroBatch(*(torch.ones(2, SEQUENCE // 2, dtype=torch.int64) for _ in range(3)))
    with pytest.raises(AssertionError, match="layout"):
        engine.evaluate([batch], NextTokenLoss())
