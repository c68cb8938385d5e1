"""Passes and dropout of an engine whose stages hold several parts of the model."""

import pytest
import torch

from megalm.engine.base import Engine
from megalm.engine.megatron import MegatronEngine
from megalm.train.pretrain import NextTokenLoss
from tests.tiny import LR, VOCABULARY, tiny_config, tiny_engine, tiny_microbatches
from tests.worlds import in_world

PP2 = "parallel.pipeline_model_parallel_size=2"
VP2 = "parallel.virtual_pipeline_model_parallel_size=2"
OVERLAP = "parallel.overlap_p2p_comm=true"
DEPTH = "model.num_layers=4"
DROPOUT = ("model.hidden_dropout=0.1", "model.attention_dropout=0.1")


def interleaved(*overrides: str) -> Engine:
    return tiny_engine(tiny_config("gpt2-tiny", PP2, VP2, DEPTH, *overrides))


@pytest.mark.parametrize("overlap", [(), (OVERLAP,)], ids=["plain", "overlapped"])
@in_world(2)
def test_evaluation_is_the_loss_without_dropout_and_changes_nothing(overlap: tuple[str, ...]) -> None:
    with_dropout = interleaved(*DROPOUT, *overlap)
    batch = tiny_microbatches(0, with_dropout.layout)
    total, weight = with_dropout.evaluate(batch, NextTokenLoss())
    assert with_dropout.evaluate(batch, NextTokenLoss()) == (total, weight)
    metrics = interleaved(*overlap).step(batch, NextTokenLoss(), LR)
    assert weight == metrics.weight
    assert total / weight == pytest.approx(metrics.loss, rel=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3])
@in_world(2)
def test_passes_take_any_number_of_microbatches(count: int) -> None:
    """Though the schedule takes them in groups of as many as there are stages."""
    outputs = []
    for layout in ((PP2, VP2), (PP2,)):
        config = tiny_config("gpt2-tiny", DEPTH, *layout)
        engine = MegatronEngine(config, tiny_engine(config).layout, train=False)
        batch = tiny_microbatches(0, engine.layout)[:count]
        found = engine.forward(batch, lambda model, m: model(m.tokens_BS), lambda logits, m: logits)
        assert len(found) == (count if engine.layout.is_last_stage else 0)
        outputs.append(torch.stack(found) if found else torch.zeros(0))
    if engine.layout.is_last_stage:
        assert outputs[0].shape == (count, 2, 32, VOCABULARY)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-12, atol=1e-12)


@in_world(2)
def test_dropout_repeats_and_recomputing_activations_changes_nothing() -> None:
    def losses(*overrides: str) -> list[float]:
        engine = interleaved(*DROPOUT, *overrides)
        steps = [engine.step(tiny_microbatches(0, engine.layout), NextTokenLoss(), LR) for _ in range(3)]
        return [value for metrics in steps for value in (metrics.loss, metrics.grad_norm)]

    expected = losses()
    assert losses() == expected
    assert losses("train.recompute.granularity=full") == pytest.approx(expected, rel=1e-12)
    assert losses("run.seed=2") != pytest.approx(expected, rel=1e-6)


@in_world(2)
def test_interleaving_changes_no_bit_of_the_losses_in_bfloat16() -> None:
    """Each microbatch goes through the same layers, and gradients add up in the same order of microbatches."""

    def losses(*overrides: str) -> list[float]:
        bf16 = ("precision.dtype=bf16", "optimizer.clip_grad=0")
        engine = tiny_engine(tiny_config("llama-tiny", PP2, DEPTH, *bf16, *overrides))
        return [engine.step(tiny_microbatches(s, engine.layout), NextTokenLoss(), LR).loss for s in range(5)]

    expected = losses()
    assert losses(VP2) == expected
    assert losses(VP2, OVERLAP) == expected
