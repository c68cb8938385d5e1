"""Megatron-LM's public issue #7452, silent numeric errors where parallelisms meet: one case for each that could touch us.

The table in docs/notebook.md says for every finding whether it does. A case names the finding and proves what must hold here.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from megalm.model.cross_entropy import linear_cross_entropy, local_columns, vocab_parallel_cross_entropy
from megalm.parallel.layout import create_layout
from megalm.testing import run_distributed
from megalm.train.pretrain import NextTokenLoss
from tests.parity.runs import FP64, assert_same_run, assert_same_tensors, run
from tests.parity.shards import Piece, assemble, pieces_of_state
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

TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
PP2 = "parallel.pipeline_model_parallel_size=2"
CP2 = "parallel.context_parallel_size=2"
EP2 = "parallel.expert_model_parallel_size=2"
NO_CLIPPING = ("optimizer.clip_grad=0", "optimizer.adam_beta1=0.5")
EXPERTS = ("model.moe.aux_loss_coeff=0.5", "model.moe.z_loss_coeff=0.1")


@in_world(2)
def test_finding_1_cross_entropy_spans_the_vocabulary_of_all_ranks() -> None:
    """There a mean over the vocabulary was one over the rank's share, so ranks disagreed. Here: 37 entries, padded to 40."""
    group, generator = dist.group.WORLD, torch.Generator().manual_seed(3)
    hidden = torch.randn(11, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(37, 8, generator=generator, dtype=torch.float64)
    labels, mask = torch.randint(37, (11,), generator=generator), torch.rand(11, generator=generator)
    whole = weight.clone().requires_grad_()
    expected = (F.cross_entropy(hidden @ whole.T, labels, reduction="none") * mask).sum()
    expected.backward()
    first, count = local_columns(40, 37, group)
    for kind in ("fused", "plain"):
        part = weight[first : first + count].clone().requires_grad_()
        if kind == "fused":
            loss = linear_cross_entropy(hidden, part, labels, mask, first, group, 4)
        else:
            loss = (vocab_parallel_cross_entropy(hidden @ part.T, labels, first, group) * mask).sum()
        loss.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(part.grad, whole.grad[first : first + count], rtol=1e-11, atol=1e-12)


def one_token(mask_BS: Tensor) -> None:
    """A single token of the whole batch counts."""
    mask_BS[:] = 0
    mask_BS[1, 5] = 1


def one_side(mask_BS: Tensor) -> None:
    """The first halves of the first microbatch's samples count, and one token of each other sample."""
    mask_BS[:] = 0
    mask_BS[:MICRO_BATCH, : SEQUENCE // 2] = 1
    mask_BS[:, -3] = 1


def gradients_under_mask(overrides: tuple[str, ...], name: str) -> tuple[float, float, list[Piece]]:
    """Loss, gradient norm and gradients of one step whose counted tokens lie as the function of that name says."""
    engine = tiny_engine(tiny_config("llama-tiny", *NO_CLIPPING, *overrides))
    batch = tiny_batch(0)
    change: Callable[[Any], None] = globals()[name]
    change(batch.loss_mask_BS)
    metrics = engine.step(to_microbatches(batch, engine.layout, MICRO_BATCH), NextTokenLoss(), LR)
    return metrics.loss, metrics.grad_norm, pieces_of_state(engine.state(), "optimizer.exp_avg.")


@functools.cache
def masked_step(world_size: int, overrides: tuple[str, ...], name: str) -> tuple[float, float, Any]:
    ranks = run_distributed(gradients_under_mask, world_size, overrides, name)
    assert all(rank[:2] == ranks[0][:2] for rank in ranks)
    return *ranks[0][:2], assemble(rank[2] for rank in ranks)


@pytest.mark.parametrize("mask", ["one_token", "one_side"])
@pytest.mark.parametrize(
    ("world_size", "layout"),
    [(2, ()), (2, (CP2,)), (4, (CP2,)), (4, (CP2, PP2))],
    ids=["finding 3: DP2", "finding 9: CP2", "findings 3 and 9: CP2xDP2", "finding 9: CP2xPP2"],
)
def test_findings_3_and_9_a_token_weighs_the_same_wherever_the_others_lie(
    world_size: int, layout: tuple[str, ...], mask: str
) -> None:
    """There losses were divided by the count of a rank or of a shard of the sequence."""
    loss, norm, gradients = masked_step(1, (), mask)
    found_loss, found_norm, found = masked_step(world_size, layout, mask)
    assert (found_loss, found_norm) == (pytest.approx(loss, rel=1e-12), pytest.approx(norm, rel=1e-12))
    assert_same_tensors(found, gradients, 1e-12)


@pytest.mark.parametrize(
    ("preset", "layout"),
    [
        ("gpt2-tiny", (TP2, SP, "train.recompute.granularity=full")),
        ("gpt2-tiny", (TP2, SP, "train.recompute.granularity=selective", "train.recompute.modules=[mlp]")),
        ("mixtral-tiny", (TP2, SP, *EXPERTS)),
        ("llama-tiny", (CP2,)),
        ("mixtral-tiny", (EP2, *EXPERTS)),
    ],
    ids=["recompute", "recompute of MLPs", "experts", "CP2", "EP2"],
)
@in_world(2)
def test_findings_4_to_7_a_model_keeps_to_its_own_groups(preset: str, layout: tuple[str, ...]) -> None:
    """There modules took the process's current tensor-parallel group. Here another layout is made current before each step."""
    found = {}
    for other in ((), None):
        engine = tiny_engine(tiny_config(preset, *layout))
        metrics = []
        for step in range(2):
            batches = tiny_microbatches(step, engine.layout)
            if other is not None:
                create_layout(tiny_config(preset, *other).parallel)
            metrics.append(engine.step(batches, NextTokenLoss(), LR))
        evaluated = engine.evaluate(tiny_microbatches(9, engine.layout), NextTokenLoss())
        weights = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
        found[other] = [(m.loss, m.grad_norm) for m in metrics], evaluated, weights
    assert found[()][:2] == found[None][:2]
    for name, weight in found[None][2].items():
        assert torch.equal(found[()][2][name], weight), name


def norm_and_gradients(preset: str, overrides: tuple[str, ...]) -> tuple[float, list[str], list[Piece]]:
    """The reported norm, replicas whose gradients differ between tensor-parallel ranks, and the gradients."""
    engine = tiny_engine(tiny_config(preset, *NO_CLIPPING, *overrides))
    engine.step(tiny_microbatches(0, engine.layout), NextTokenLoss(), LR)
    metrics = engine.step(tiny_microbatches(1, engine.layout), NextTokenLoss(), 0.0)
    group, apart = engine.layout.groups.tp, []
    for chunk in engine.chunks:
        for name, parameter in chunk.named_parameters():
            if not getattr(parameter, "tensor_model_parallel", False):
                copies = [torch.empty_like(parameter.main_grad) for _ in range(group.size())]
                dist.all_gather(copies, parameter.main_grad.clone(), group=group)
                if not all(torch.equal(copy, copies[0]) for copy in copies):
                    apart.append(name)
    return metrics.grad_norm, apart, pieces_of_state(gradients_of(engine), "optimizer.exp_avg.")


def gradients_of(engine: Any) -> dict[str, Any]:
    """The engine's state with the last gradients where its first moments are."""
    for chunk in engine.chunks:
        for parameter in chunk.parameters():
            if parameter.requires_grad:
                engine.optimizer_state.write(parameter, "exp_avg", parameter.main_grad)
    return engine.state()


@pytest.mark.parametrize(
    ("world_size", "preset", "layout"),
    [
        (2, "gpt2-tiny", (TP2,)),
        (2, "gpt2-tiny", (TP2, SP)),
        (2, "llama-tiny", (TP2, "model.add_qkv_bias=true")),
        (2, "llama-tiny", (TP2, "model.qk_layernorm=true")),
        (2, "gpt2-tiny", (TP2, SP, "model.qk_layernorm=true")),
        (4, "gpt2-tiny", (TP2, PP2)),
        (2, "mixtral-tiny", (TP2, *EXPERTS)),
        (2, "mixtral-tiny", (TP2, SP, *EXPERTS)),
        (2, "mixtral-tiny", (EP2, *EXPERTS)),
        (4, "mixtral-tiny", (TP2, EP2, *EXPERTS)),
    ],
)
def test_findings_8_and_11_each_gradient_is_whole_and_counts_once_in_the_norm(
    world_size: int, preset: str, layout: tuple[str, ...]
) -> None:
    """There a shard that was not marked as one, or a replica whose gradients were not summed, slipped through.

    The norm against that of the gradients put together in full; replicas the same bits on all tensor-parallel ranks.
    """
    ranks = run_distributed(norm_and_gradients, world_size, preset, layout)
    full = assemble(rank[2] for rank in ranks)
    expected = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in full.values()))
    for norm, apart, _ in ranks:
        assert norm == pytest.approx(expected, rel=1e-12)
        assert not apart, "replicas have different gradients"


@pytest.mark.parametrize("layout", [(TP2, SP), (TP2,), (CP2,), (EP2,)], ids=["TP2+SP", "TP2", "CP2", "EP2"])
def test_finding_10_losses_of_a_router_do_not_depend_on_who_counts_its_tokens(
    layout: tuple[str, ...],
) -> None:
    """There a count of the rank was overwritten by one of all ranks, and the loss scaled by it."""
    model = (*EXPERTS, "model.num_layers=2")
    assert_same_run(run(2, "mixtral-tiny", (*model, *layout)), run(1, "mixtral-tiny", model), FP64)
