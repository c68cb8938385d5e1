"""Activations computed again are the same, module by module and layer by layer, and their memory is given back."""

import functools

import pytest
import torch
from torch import Tensor, nn

from megalm.engine.activations import saved_bytes
from megalm.engine.megatron import MegatronEngine
from megalm.train.pretrain import NextTokenLoss
from tests.tiny import LR, MICRO_BATCH, SEQUENCE, tiny_config, tiny_engine, tiny_microbatches
from tests.worlds import in_world

TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
EP2 = "parallel.expert_model_parallel_size=2"
PP2 = "parallel.pipeline_model_parallel_size=2"
DROPOUT = ("model.hidden_dropout=0.1", "model.attention_dropout=0.1")
LAYERS = 4
SELECTIVE = "train.recompute.granularity=selective"
FULL = "train.recompute.granularity=full"
CHOICES = {
    "core_attn": (SELECTIVE,),
    "layernorm": (SELECTIVE, "train.recompute.modules=[layernorm]"),
    "mlp": (SELECTIVE, "train.recompute.modules=[mlp]"),
    "all modules": (SELECTIVE, "train.recompute.modules=[core_attn,layernorm,mlp]"),
    "full": (FULL,),
    "uniform, 2": (FULL, "train.recompute.num_layers=2"),
    "block, 1": (FULL, "train.recompute.method=block"),
}
KINDS = {
    "core_attn": "CoreAttention",
    "norms": "Norm",
    "mlp": "MLP",
    "layers": "TransformerLayer",
}
# what runs a second time in the layers of one process or of a stage: per layer, two norms among it
AGAIN = {
    "core_attn": {"core_attn": 1},
    "layernorm": {"norms": 2},
    "mlp": {"mlp": 1},
    "all modules": {"core_attn": 1, "norms": 2, "mlp": 1},
    "full": {"core_attn": 1, "norms": 2, "mlp": 1, "layers": 1},
    "uniform, 2": {"core_attn": 1, "norms": 2, "mlp": 1, "layers": 1},
}


def count(calls: dict[str, int], kind: str, *_: object) -> None:
    calls[kind] += 1


def engine_with(preset: str, *overrides: str) -> MegatronEngine:
    return tiny_engine(tiny_config(preset, f"model.num_layers={LAYERS}", *overrides))


def count_calls(engine: MegatronEngine) -> dict[str, int]:
    """Passes through each kind of module in the layers, counted from now on."""
    calls = dict.fromkeys(KINDS, 0)

    for module in engine.model.decoder.layers.modules():
        for kind, name in KINDS.items():
            if type(module).__name__ == name:
                module.register_forward_hook(functools.partial(count, calls, kind))
    return calls


def history(*overrides: str) -> tuple[list[tuple[float, float]], dict[str, Tensor], dict[str, int]]:
    """(losses and norms, final weights, calls) of two steps."""
    engine = engine_with("gpt2-tiny", *overrides)
    calls = count_calls(engine)
    metrics = [engine.step(tiny_microbatches(s, engine.layout), NextTokenLoss(), LR) for s in range(2)]
    weights = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    return [(m.loss, m.grad_norm) for m in metrics], weights, calls


@pytest.mark.parametrize("layout", [(), (TP2, SP), (PP2,)], ids=["DP2", "TP2+SP", "PP2"])
@in_world(2)
def test_each_choice_of_what_to_recompute_changes_nothing(layout: tuple[str, ...]) -> None:
    """With dropout, whose masks must be drawn alike twice."""
    expected, weights, calls = history(*layout, *DROPOUT)
    for choice, settings in CHOICES.items():
        found, found_weights, found_calls = history(*layout, *DROPOUT, *settings)
        for left, right in zip(found, expected, strict=True):
            assert left == pytest.approx(right, rel=1e-12), choice
        for name, weight in found_weights.items():
            torch.testing.assert_close(weight, weights[name], rtol=0, atol=1e-11, msg=f"{choice}: {name}")
        if choice == "block, 1":  # the first of the 4 layers of one process, of the 2 of a stage
            share = 2 if PP2 in layout else 4
            assert found_calls == {kind: n + n // share for kind, n in calls.items()}, choice
        else:
            again = AGAIN[choice]
            assert found_calls == {k: n * (2 if k in again else 1) for k, n in calls.items()}, choice


@pytest.mark.parametrize("layout", [(), (EP2,), (TP2, SP)], ids=["DP2", "EP2", "TP2+SP"])
@in_world(2)
def test_recomputed_experts_change_nothing(layout: tuple[str, ...]) -> None:
    """Nor do the losses and counts of their routers, which see each token twice."""
    experts = ("model.moe.shared_expert_ffn_hidden_size=48", "model.moe.aux_loss_coeff=0.1")
    outcomes = {}
    for modules in ("none", "[moe]", "[shared_experts]", "[layernorm,moe,core_attn]"):
        settings = (SELECTIVE, f"train.recompute.modules={modules}") if modules != "none" else ()
        engine = engine_with("mixtral-tiny", *experts, *layout, *settings)
        calls = {"TopKRouter": 0, "SharedExpertMLP": 0}
        for module in engine.model.modules():
            if (name := type(module).__name__) in calls:
                module.register_forward_hook(functools.partial(count, calls, name))
        metrics = [engine.step(tiny_microbatches(s, engine.layout), NextTokenLoss(), LR) for s in range(2)]
        figures = [(m.loss, m.grad_norm, *m.more.values()) for m in metrics]
        weights = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
        outcomes[modules] = figures, weights, tuple(calls.values())
    figures, weights, (routed, shared) = outcomes.pop("none")
    for modules, (found, found_weights, calls) in outcomes.items():
        for left, right in zip(found, figures, strict=True):
            assert left == pytest.approx(right, rel=1e-12), modules
        for name, weight in found_weights.items():
            torch.testing.assert_close(weight, weights[name], rtol=0, atol=1e-11, msg=f"{modules}: {name}")
        assert calls == ((2 if "moe" in modules else 1) * routed, 2 * shared), modules


def kept(preset: str, *overrides: str) -> int:
    engine = engine_with(preset, "precision.dtype=fp32", "model.attention=matmul", *overrides)
    microbatch = tiny_microbatches(0, engine.layout)[0]
    module: nn.Module = engine.model.train()
    return saved_bytes(lambda: NextTokenLoss().forward(module, microbatch), module.parameters())


@in_world(1)
def test_what_is_recomputed_is_not_kept() -> None:
    """By the tensors that each module holds for its backward pass: T tokens, H hidden, F inside the MLP, 4 bytes."""
    config = tiny_config("llama-tiny")
    tokens, hidden, inner = MICRO_BATCH * SEQUENCE, config.model.hidden_size, config.model.ffn_size
    plain = kept("llama-tiny")
    saved = {choice: plain - kept("llama-tiny", *settings) for choice, settings in CHOICES.items()}
    token_row = 4 * tokens * hidden
    assert saved["layernorm"] >= LAYERS * 2 * token_row  # the outputs of both norms
    gate_up_product = 4 * tokens * 3 * inner
    assert saved["mlp"] >= LAYERS * gate_up_product
    heads = config.model.num_attention_heads
    assert saved["core_attn"] >= LAYERS * 4 * MICRO_BATCH * heads * SEQUENCE * SEQUENCE  # attention weights
    # one input for each layer, or for each two, instead of all inside
    assert saved["full"] > saved["all modules"] > max(saved["layernorm"], saved["mlp"], saved["core_attn"])
    assert saved["uniform, 2"] == saved["full"] + LAYERS // 2 * token_row
    assert saved["block, 1"] == pytest.approx(saved["full"] / LAYERS, rel=0.05)


@in_world(1)
def test_saved_bytes_counts_what_autograd_holds() -> None:
    x, weight = torch.randn(8, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)
    assert saved_bytes(lambda: x @ weight, [x, weight]) == 0
    assert saved_bytes(lambda: x @ weight, [weight]) == x.nbytes
    assert saved_bytes(lambda: (x @ weight).exp().sum(), [x, weight]) == 8 * 4 * 4  # exp keeps its output
    assert saved_bytes(lambda: x.exp().square().sum(), [x]) == 8 * 4 * 4  # ... which square keeps too: once
    assert saved_bytes(lambda: torch.no_grad()(lambda: x.exp().sum())(), [x]) == 0
