"""The router's choices, losses and statistics against computations written down from the papers."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from megalm.model.gpt import GPT
from megalm.model.moe import TopKRouter, balance_loss, z_loss
from megalm.train.pretrain import NextTokenLoss
from tests.tiny import (
    GLOBAL_BATCH,
    LR,
    MICRO_BATCH,
    SEQUENCE,
    random_tokens,
    tiny_config,
    tiny_engine,
    tiny_microbatches,
    tiny_model,
)
from tests.worlds import in_world

EXPERTS, TOP_K = 4, 2
BALANCE, Z = 0.3, 0.2
BETA1 = 0.9


def balance_of_paper(scores_TE: Tensor, top_k: int = TOP_K) -> Tensor:
    """Switch Transformers (arXiv:2101.03961), equations 4 to 6, with `top_k` experts a token instead of one."""
    tokens, experts = scores_TE.shape
    total = scores_TE.new_zeros(())
    for expert in range(experts):
        dispatched = sum(expert in scores_T.topk(top_k).indices.tolist() for scores_T in scores_TE)
        total = total + dispatched / (tokens * top_k) * scores_TE[:, expert].sum() / tokens
    return experts * total


def z_of_paper(logits_TE: Tensor) -> Tensor:
    """ST-MoE (arXiv:2202.08906), equation 5."""
    return sum((sum(x.exp() for x in logits_E).log() ** 2 for logits_E in logits_TE), start=0) / len(
        logits_TE
    )


def record_logits(model: GPT) -> list[Tensor]:
    """Router logits (S, B, E) of each layer of experts as the model runs, computed again from the routers' inputs."""
    found: list[Tensor] = []
    for router in routers(model):
        router.register_forward_hook(
            lambda router, inputs, _: found.append(torch.einsum("sbh,eh->sbe", inputs[0], router.weight))
        )
    return found


def routers(model: GPT) -> list[TopKRouter]:
    return [module for module in model.modules() if isinstance(module, TopKRouter)]


def config_with(*overrides: str) -> Any:
    moe = (f"model.moe.aux_loss_coeff={BALANCE}", f"model.moe.z_loss_coeff={Z}")
    return tiny_config(
        "mixtral-tiny", "optimizer.clip_grad=0", f"optimizer.adam_beta1={BETA1}", *moe, *overrides
    )


def objective_of_papers(model: GPT, microbatches: list[Any], over: str) -> tuple[Tensor, Tensor, Tensor]:
    """(what a step minimises, mean balance loss, mean z loss), each a scalar with gradients; means over layers."""
    logits = record_logits(model)
    weight = sum(m.loss_mask_BS.sum() for m in microbatches)
    loss = sum(NextTokenLoss().sum(NextTokenLoss().forward(model, m), m) for m in microbatches) / weight
    balance = z = torch.zeros((), dtype=torch.float64)
    for logits_SBE in logits:  # one a layer and microbatch
        share = logits_SBE.shape[1] / GLOBAL_BATCH
        parts = [logits_SBE.flatten(0, 1)] if over == "batch" else logits_SBE.unbind(1)
        balance = balance + sum(balance_of_paper(part.softmax(-1)) for part in parts) * share / len(parts)
        z = z + z_of_paper(logits_SBE.flatten(0, 1)) * share
    layers = len(routers(model))
    return loss + BALANCE * balance + Z * z, balance / layers, z / layers


@pytest.mark.parametrize("over", ["sequence", "batch"])
@in_world(1)
def test_a_step_descends_the_papers_objective(over: str) -> None:
    config = config_with(f"model.moe.aux_loss={over}")
    plain = tiny_model(config).train()
    engine = tiny_engine(config)
    microbatches = tiny_microbatches(0, engine.layout)
    objective, balance, z = objective_of_papers(plain, microbatches, over)
    objective.backward()

    metrics = engine.step(microbatches, NextTokenLoss(), LR)
    assert metrics.more["aux_loss"] == pytest.approx(float(balance), rel=1e-12)
    assert metrics.more["z_loss"] == pytest.approx(float(z), rel=1e-12)
    # the report is of the task's loss alone
    assert metrics.loss == pytest.approx(float(objective - 2 * (BALANCE * balance + Z * z)), rel=1e-12)
    state = engine.state()
    for name, parameter in plain.named_parameters():
        found = state[f"optimizer.exp_avg.{name}"].data / (1 - BETA1)
        scale = float(parameter.grad.abs().max())
        torch.testing.assert_close(found, parameter.grad, rtol=0, atol=1e-12 * scale, msg=name)


@in_world(1)
def test_without_an_auxiliary_loss_its_coefficient_does_nothing() -> None:
    norms = []
    for setting in ("model.moe.aux_loss=none", "model.moe.aux_loss_coeff=0", "model.moe.aux_loss_coeff=0.5"):
        engine = tiny_engine(config_with(setting))
        norms.append(engine.step(tiny_microbatches(0, engine.layout), NextTokenLoss(), LR).grad_norm)
    assert norms[0] == norms[1] != norms[2]


def test_an_even_load_gives_a_balance_loss_of_one_and_a_single_expert_the_number_of_experts() -> None:
    even_SBE = torch.full((6, 1, 3), 1 / 3)
    assert balance_loss(even_SBE, torch.tensor([[2.0, 2.0, 2.0]]), 6, top_k=1).tolist() == pytest.approx(
        [1.0]
    )
    one_SBE = torch.tensor([1.0, 0.0, 0.0]).expand(6, 1, 3)
    assert balance_loss(one_SBE, torch.tensor([[6.0, 0.0, 0.0]]), 6, top_k=1).tolist() == pytest.approx([3.0])
    assert z_loss(torch.zeros(6, 2, 3), 6).tolist() == pytest.approx([math.log(3) ** 2] * 2)


def routed(*overrides: str, training: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (T, E) of the first router on random tokens, and its weights and map (T, E)."""
    model = tiny_model(config_with(*overrides)).train(training)
    logits, found = record_logits(model), []
    routers(model)[0].register_forward_hook(lambda _, __, output: found.append(output))
    model(random_tokens(3))
    return logits[0].flatten(0, 1), *found[0]


@pytest.mark.parametrize("normalized", ["true", "false"])
@pytest.mark.parametrize("function", ["softmax", "sigmoid"])
@in_world(1)
def test_weights_are_the_highest_scores(function: str, normalized: str) -> None:
    logits_TE, weights_TE, map_TE = routed(
        f"model.moe.score_function={function}", f"model.moe.norm_topk_prob={normalized}"
    )
    scores_TE = logits_TE.softmax(-1) if function == "softmax" else logits_TE.sigmoid()
    for scores_E, weights_E, map_E in zip(scores_TE, weights_TE, map_TE, strict=True):
        expected_E = scores_E.clone()
        for _ in range(EXPERTS - TOP_K):
            expected_E[expected_E.where(expected_E > 0, math.inf).argmin()] = 0
        if normalized == "true":
            expected_E = expected_E / expected_E.sum()
        torch.testing.assert_close(weights_E, expected_E, rtol=1e-12, atol=0)
        assert torch.equal(map_E, expected_E > 0)


@in_world(1)
def test_capacity_drops_the_lightest_assignments_in_training_alone() -> None:
    factor = "model.moe.capacity_factor=1"
    _, free_TE, map_TE = routed()
    _, weights_TE, kept_TE = routed(factor)
    limit = 3 * SEQUENCE * TOP_K // EXPERTS
    assert int(map_TE.sum(0).max()) > limit >= int(kept_TE.sum(0).max())
    for expert in range(EXPERTS):
        heaviest = free_TE[:, expert].topk(min(limit, int(map_TE[:, expert].sum()))).indices
        assert set(heaviest.tolist()) == set(kept_TE[:, expert].nonzero().flatten().tolist())
    assert torch.equal(weights_TE, free_TE * kept_TE)
    assert int(routed(factor, training=False)[2].sum()) == 3 * SEQUENCE * TOP_K


@in_world(1)
def test_statistics_count_every_token_of_a_step() -> None:
    engine = tiny_engine(config_with("model.moe.capacity_factor=1"))
    logits = record_logits(engine.model)
    kept: list[Tensor] = []
    for router in routers(engine.model):
        router.register_forward_hook(lambda _, __, output: kept.append(output[1].sum()))
    metrics = engine.step(tiny_microbatches(0, engine.layout), NextTokenLoss(), LR)
    assert len(logits) == 2 * GLOBAL_BATCH / MICRO_BATCH
    tokens_LE = torch.zeros(2, EXPERTS, dtype=torch.float64)
    for number, logits_SBE in enumerate(logits):
        chosen = logits_SBE.topk(TOP_K).indices.flatten()
        tokens_LE[number % 2] += torch.bincount(chosen, minlength=EXPERTS)
    assignments = GLOBAL_BATCH * SEQUENCE * TOP_K
    assert tokens_LE.sum(1).tolist() == [assignments] * 2
    share_LE = tokens_LE / assignments
    entropy = -(share_LE * share_LE.log()).sum(1) / math.log(EXPERTS)
    assert metrics.more["expert_load_max"] == pytest.approx(float(share_LE.max()), rel=1e-12)
    assert metrics.more["expert_load_min"] == pytest.approx(float(share_LE.min()), rel=1e-12)
    assert metrics.more["expert_load_entropy"] == pytest.approx(float(entropy.mean()), rel=1e-12)
    dropped = 1 - float(sum(kept)) / (2 * assignments)
    assert dropped > 0.01
    assert metrics.more["dropped_fraction"] == pytest.approx(dropped, rel=1e-12)


@in_world(1)
def test_a_dense_model_has_no_figures_of_experts() -> None:
    engine = tiny_engine(tiny_config("llama-tiny"))
    assert engine.step(tiny_microbatches(0, engine.layout), NextTokenLoss(), LR).more == {}


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        (
            "model.moe.layer_frequency=2",
            "model.moe.moe_ffn_hidden_size=40",
            "model.moe.shared_expert_ffn_hidden_size=24",
        ),
    ],
)
@in_world(1)
def test_the_configuration_counts_the_parameters(overrides: tuple[str, ...]) -> None:
    config = tiny_config("mixtral-tiny", "model.num_layers=3", *overrides)
    sizes = {name: p.numel() for name, p in tiny_model(config).named_parameters()}
    assert sum(sizes.values()) == config.model.num_parameters()
    idle = sum(n for name, n in sizes.items() if ".local_experts.2." in name or ".local_experts.3." in name)
    assert sum(sizes.values()) - idle == config.model.num_active_parameters() < config.model.num_parameters()
