"""Steps: recomputing activations, dropout, bfloat16, and passes without gradients."""

import pytest
import torch
from torch import Tensor, nn

from megalm.engine.base import MicroBatch
from megalm.engine.megatron import MegatronEngine
from megalm.model.attention import CoreAttention
from megalm.model.norm import Norm
from megalm.train.pretrain import NextTokenLoss
from tests.tiny import LR, VOCABULARY, tiny_config, tiny_engine, tiny_microbatches
from tests.worlds import in_world

TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
PP2 = "parallel.pipeline_model_parallel_size=2"
CP2 = "parallel.context_parallel_size=2"
ZERO1 = "parallel.zero_stage=1"
DROPOUT = ("model.hidden_dropout=0.1", "model.attention_dropout=0.1")


class Recording(NextTokenLoss):
    """Keeps this rank's own sums."""

    def __init__(self) -> None:
        self.sums: list[float] = []

    def sum(self, output: Tensor, microbatch: MicroBatch) -> Tensor:
        """As computed, and written down."""
        self.sums.append(float(output.detach()))
        return output


def count_calls(engine: MegatronEngine, kind: type[nn.Module]) -> list[int]:
    """A list that grows with each forward pass of a module of that kind."""
    calls: list[int] = []
    for module in engine.model.modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def recompute_run(granularity: str, *overrides: str) -> tuple[list, dict[str, Tensor], int, int]:
    """(losses and norms, final weights, attention calls, norm calls) of three steps."""
    engine = tiny_engine(tiny_config("gpt2-tiny", f"train.recompute.granularity={granularity}", *overrides))
    attentions, norms = count_calls(engine, CoreAttention), count_calls(engine, Norm)
    metrics = [engine.step(tiny_microbatches(s, engine.layout), NextTokenLoss(), LR) for s in range(3)]
    weights = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    return [(m.loss, m.grad_norm) for m in metrics], weights, len(attentions), len(norms)


@pytest.mark.parametrize("dropout", [(), DROPOUT], ids=["plain", "dropout"])
@pytest.mark.parametrize("layout", [(), (TP2, SP), (PP2,), (CP2,)], ids=["DP2", "TP2+SP", "PP2", "CP2"])
@in_world(2)
def test_recomputing_activations_changes_nothing(layout: tuple[str, ...], dropout: tuple[str, ...]) -> None:
    expected, weights, attentions, norms = recompute_run("none", *layout, *dropout)
    for granularity in ("selective", "full"):
        found, found_weights, attentions_again, norms_again = recompute_run(granularity, *layout, *dropout)
        for left, right in zip(found, expected, strict=True):
            assert left == pytest.approx(right, rel=1e-12)
        for name, weight in found_weights.items():
            torch.testing.assert_close(weight, weights[name], rtol=0, atol=1e-11, msg=name)
        assert attentions_again == 2 * attentions, "attention was not recomputed"
        assert (norms_again > norms) == (granularity == "full")


def losses_at_fixed_weights(seed: int, steps: int, first_step: int = 0) -> list[float]:
    """Losses of the same batch again and again, at learning rate 0."""
    engine = tiny_engine(tiny_config("gpt2-tiny", f"run.seed={seed}", *DROPOUT))
    engine.model.load_state_dict(tiny_engine(tiny_config("gpt2-tiny")).model.state_dict())
    engine.steps_begun = first_step
    return [engine.step(tiny_microbatches(0, engine.layout), NextTokenLoss(), 0.0).loss for _ in range(steps)]


@in_world(1)
def test_dropout_is_a_function_of_seed_and_step() -> None:
    first = losses_at_fixed_weights(seed=1, steps=4)
    assert losses_at_fixed_weights(seed=1, steps=4) == first
    assert len(set(first)) == 4, "steps share masks"
    assert losses_at_fixed_weights(seed=1, steps=2, first_step=2) == first[2:]
    assert not set(losses_at_fixed_weights(seed=2, steps=4)) & set(first)


@in_world(1)
def test_microbatches_of_a_step_draw_different_masks() -> None:
    engine, loss = tiny_engine(tiny_config("gpt2-tiny", *DROPOUT)), Recording()
    microbatch = tiny_microbatches(0, engine.layout)[-1]
    engine.step([microbatch] * 4, loss, LR)
    assert len(set(loss.sums)) == 4


@in_world(2)
def test_data_parallel_ranks_draw_different_masks() -> None:
    sums: dict[bool, list] = {}
    for dropout in (False, True):
        engine, loss = tiny_engine(tiny_config("gpt2-tiny", *(DROPOUT if dropout else ()))), Recording()
        batches = [tiny_microbatches(0, engine.layout)]
        torch.distributed.broadcast_object_list(batches)  # both ranks hold the same samples
        engine.step(batches[0], loss, LR)
        sums[dropout] = [None, None]
        torch.distributed.all_gather_object(sums[dropout], loss.sums)
    assert sums[False][0] == sums[False][1]
    assert not set(sums[True][0]) & set(sums[True][1]) - {0.0}


@pytest.mark.parametrize("layout", [(TP2,), (TP2, SP)], ids=["TP2", "TP2+SP"])
@in_world(2)
def test_dropout_leaves_replicas_of_tensor_parallel_ranks_in_step(layout: tuple[str, ...]) -> None:
    """What both ranks hold, norms and the biases of row-parallel layers, must not drift apart."""
    engine = tiny_engine(tiny_config("gpt2-tiny", *DROPOUT, *layout))
    for step in range(3):
        engine.step(tiny_microbatches(step, engine.layout), NextTokenLoss(), LR)
    for name, parameter in engine.model.named_parameters():
        if not getattr(parameter, "tensor_model_parallel", False):
            copies = [torch.empty_like(parameter) for _ in range(2)]
            torch.distributed.all_gather(copies, parameter.detach())
            assert torch.equal(*copies), name


@in_world(2)
def test_attention_dropout_differs_between_the_heads_of_tensor_parallel_ranks() -> None:
    engine = tiny_engine(tiny_config("gpt2-tiny", TP2, "model.attention_dropout=0.5"))
    core = next(module for module in engine.model.modules() if isinstance(module, CoreAttention)).train()
    heads = torch.ones(16, 1, 2, 4, dtype=torch.float64)
    mine = core(heads, heads, heads, None)
    both = [torch.empty_like(mine) for _ in range(2)]
    torch.distributed.all_gather(both, mine)
    assert not torch.equal(*both)


def overfit(dtype: str, *overrides: str) -> list[float]:
    """Losses of 40 steps on one batch."""
    engine = tiny_engine(tiny_config("llama-tiny", f"precision.dtype={dtype}", *overrides))
    return [engine.step(tiny_microbatches(0, engine.layout), NextTokenLoss(), 3e-3).loss for _ in range(40)]


@in_world(2)
def test_bfloat16_training_follows_float32() -> None:
    """Within 2% of the loss all the way down."""
    expected = overfit("fp32")
    assert expected[-1] < 0.7 * expected[0]
    for layout in ((), (ZERO1,), (TP2, SP), (PP2,)):
        assert overfit("bf16", *layout) == pytest.approx(expected, rel=0.02), layout


@in_world(2)
def test_sharding_the_optimizer_changes_no_bit_in_bfloat16() -> None:
    assert overfit("bf16", ZERO1) == overfit("bf16")


@pytest.mark.parametrize("layout", [(), (TP2, SP), (PP2,)], ids=["DP2", "TP2+SP", "PP2"])
@in_world(2)
def test_evaluation_is_the_loss_without_dropout_and_changes_nothing(layout: tuple[str, ...]) -> None:
    with_dropout = tiny_engine(tiny_config("gpt2-tiny", *DROPOUT, *layout))
    total, weight = with_dropout.evaluate(tiny_microbatches(0, with_dropout.layout), NextTokenLoss())
    assert with_dropout.steps_begun == 0
    assert with_dropout.evaluate(tiny_microbatches(0, with_dropout.layout), NextTokenLoss()) == (
        total,
        weight,
    )
    engine = tiny_engine(tiny_config("gpt2-tiny", *layout))
    metrics = engine.step(tiny_microbatches(0, engine.layout), NextTokenLoss(), LR)
    assert weight == metrics.weight
    assert total / weight == pytest.approx(metrics.loss, rel=1e-12)


@in_world(2)
def test_forward_gives_logits_on_the_last_stage_alone() -> None:
    outputs = {}
    for layout in ((), (PP2,)):
        config = tiny_config("llama-tiny", *layout)
        engine = MegatronEngine(config, tiny_engine(config).layout, train=False)
        batches = tiny_microbatches(0, engine.layout)
        outputs[layout] = engine.forward(
            batches, lambda model, m: model(m.tokens_BS, m.forward_state()), lambda logits, m: logits
        )
    if torch.distributed.get_rank() == 0:
        assert outputs[(PP2,)] == []
        return
    found = torch.cat(outputs[(PP2,)])
    assert found.shape == (8, 32, VOCABULARY)
    mine = torch.cat(outputs[()])  # under DP2 rank 1 holds every other microbatch
    torch.testing.assert_close(
        found.view(4, 2, 32, VOCABULARY)[1::2].flatten(0, 1), mine, rtol=1e-12, atol=1e-12
    )
    assert not found.requires_grad
