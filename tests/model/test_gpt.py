"""What holds for every model: causality, document resets, vocabulary padding, kernels and layouts that agree."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from megalm.model.attention_kernels import ATTENTIONS
from megalm.model.gpt import GPT
from megalm.model.kernel_choice import NEEDS
from megalm.model.state import ForwardState
from megalm.train.pretrain import NextTokenLoss
from tests.tiny import (
    LR,
    SEQUENCE,
    VOCABULARY,
    random_tokens,
    tiny_config,
    tiny_engine,
    tiny_microbatches,
    tiny_model,
)
from tests.worlds import in_world

POSITIONS = ("learned", "rope", "sinusoidal", "alibi", "none")
KERNELS = [name for name in ATTENTIONS if ("model.attention", name) not in NEEDS]  # the others: tests/gpu
TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"


def sharpened(model: GPT) -> GPT:
    """Ten times larger matrices, so that attention is far from uniform and a leak shows."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "decoder" in name and parameter.dim() == 2:
                parameter.mul_(10)
    return model


def model_with(position: str, *overrides: str) -> GPT:
    return sharpened(
        tiny_model(tiny_config("llama-tiny", f"model.position_embedding={position}", *overrides))
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("position", POSITIONS)
@in_world(1)
def test_a_later_token_never_changes_earlier_logits(position: str, kernel: str) -> None:
    model = model_with(position, f"model.attention={kernel}")
    tokens = random_tokens(2)
    changed = tokens.clone()
    changed[:, 20] = (changed[:, 20] + 1) % VOCABULARY
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :20], before[:, :20], rtol=0, atol=1e-13)
    for token in (20, SEQUENCE - 1):
        assert (after[:, token] - before[:, token]).abs().max() > 1e-3


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("position", POSITIONS)
@in_world(1)
def test_documents_in_one_window_give_the_logits_of_each_alone(position: str, kernel: str) -> None:
    model = model_with(position, f"model.attention={kernel}")
    lengths = (9, 1, 22)
    window = random_tokens(2, sum(lengths))
    state = ForwardState(
        positions_BS=torch.cat([torch.arange(n) for n in lengths]).expand(2, -1),
        segments_BS=torch.arange(3).repeat_interleave(torch.tensor(lengths)).expand(2, -1),
    )
    together = model(window, state).split(lengths, dim=1)
    for found, document in zip(together, window.split(lengths, dim=1), strict=True):
        torch.testing.assert_close(found, model(document), rtol=1e-12, atol=1e-12)
    assert (torch.cat(together, 1) - model(window)).abs().max() > 1e-3, "resets changed nothing"


@pytest.mark.parametrize("position", [p for p in POSITIONS if p != "none"])
@in_world(1)
def test_positions_matter(position: str) -> None:
    """The same token at other distances: without positions, attention over equal sets gives equal logits."""
    tokens = random_tokens(1)
    swapped = tokens.clone()
    swapped[:, [3, 10]] = tokens[:, [10, 3]]
    assert tokens[0, 3] != tokens[0, 10]
    # one layer: deeper ones see the order even without positions, through the causal mask
    without, with_positions = (model_with(p, "model.num_layers=1") for p in ("none", position))
    torch.testing.assert_close(without(swapped)[:, -1], without(tokens)[:, -1], rtol=1e-12, atol=1e-12)
    assert (with_positions(swapped)[:, -1] - with_positions(tokens)[:, -1]).abs().max() > 1e-3


def loss_and_gradients(*overrides: str, preset: str = "llama-tiny") -> tuple[float, dict[str, Tensor]]:
    """Summed loss of a batch with uneven masks, and the gradients."""
    model = tiny_model(tiny_config(preset, *overrides))
    tokens, labels = random_tokens(3), random_tokens(3, seed=1)
    mask = torch.rand(3, SEQUENCE, generator=torch.Generator().manual_seed(2)).round(decimals=1)
    loss = model(tokens, labels=labels, loss_mask=mask)
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("tied", ["true", "false"])
@pytest.mark.parametrize("overrides", [(), ("model.cross_entropy_chunk_tokens=37",)])
@in_world(1)
def test_fused_cross_entropy_equals_the_plain_one(overrides: tuple[str, ...], tied: str) -> None:
    tie = f"model.tie_embeddings={tied}"
    loss, gradients = loss_and_gradients("model.cross_entropy=fused", tie, *overrides)
    expected, expected_gradients = loss_and_gradients("model.cross_entropy=plain", tie)
    assert loss == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("preset", ["gpt2-tiny", "llama-tiny"])
@in_world(1)
def test_plain_kernels_give_the_same_loss_and_gradients(preset: str) -> None:
    loss, gradients = loss_and_gradients("model.attention=torch", "model.norm=torch", preset=preset)
    expected, expected_gradients = loss_and_gradients(
        "model.attention=plain", "model.norm=plain", preset=preset
    )
    assert loss == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ["fused", "plain"])
@pytest.mark.parametrize("tied", ["true", "false"])
@in_world(1)
def test_vocabulary_padding_never_changes_the_loss(tied: str, kind: str) -> None:
    shared = (f"model.tie_embeddings={tied}", f"model.cross_entropy={kind}")
    loss, gradients = loss_and_gradients("model.make_vocab_size_divisible_by=128", *shared)
    expected, expected_gradients = loss_and_gradients("model.make_vocab_size_divisible_by=1", *shared)
    assert loss == pytest.approx(expected, rel=1e-14)
    for name, right in expected_gradients.items():
        left = gradients[name]
        torch.testing.assert_close(left[: len(right)], right, rtol=1e-13, atol=1e-13)
        assert len(left) == (512 if len(right) == VOCABULARY else len(right))
        assert not left[len(right) :].any(), f"{name}: padding has a gradient"


@pytest.mark.parametrize("zero_stage", [0, 1])
@in_world(2)
def test_padding_rows_stay_zero_through_training(zero_stage: int) -> None:
    layout = (TP2,) if zero_stage == 0 else ("parallel.zero_stage=1",)
    engine = tiny_engine(
        tiny_config("gpt2-tiny", "precision.dtype=fp32", "model.make_vocab_size_divisible_by=128", *layout)
    )
    for step in range(3):
        engine.step(tiny_microbatches(step, engine.layout), NextTokenLoss(), LR)
    assert engine.model.vocab_size == 512
    padding = engine.model.embedding.word_embeddings.weight[engine.model.columns :]
    assert len(padding) == (0 if zero_stage == 0 and engine.layout.tp_rank == 0 else 3)
    assert not padding.any()


@pytest.mark.parametrize("overrides", [(TP2,), (TP2, SP)], ids=["TP2", "TP2+SP"])
@pytest.mark.parametrize("tied", ["true", "false"])
@in_world(2)
def test_logits_and_token_losses_under_tensor_parallelism_equal_one_process(
    tied: str, overrides: tuple[str, ...]
) -> None:
    """Both ranks know the whole model's logits, without the padding column."""
    tie = f"model.tie_embeddings={tied}"
    tokens, labels = random_tokens(2), random_tokens(2, seed=1)
    results = []
    for layout in ((), overrides):  # without overrides: two copies, each the model of one process
        model = tiny_model(tiny_config("llama-tiny", tie, *layout))
        results.append((model(tokens), model(tokens, labels=labels)))
    (expected, expected_losses), (found, losses) = results
    assert found.shape == (2, SEQUENCE, VOCABULARY)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-12, atol=1e-12)
    of_logits = torch.nn.functional.cross_entropy(expected.flatten(0, 1), labels.flatten(), reduction="none")
    torch.testing.assert_close(losses.flatten(), of_logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tied", ["true", "false"])
@in_world(2)
def test_a_rank_that_holds_padding_alone_changes_nothing(tied: str) -> None:
    """60 tokens padded to 256 over two ranks: the second holds none of them."""
    small = ("model.vocab_size=60", f"model.tie_embeddings={tied}")
    tokens, labels = random_tokens(2) % 60, random_tokens(2, seed=1) % 60
    results = []
    for layout in ((), (TP2, "model.make_vocab_size_divisible_by=128")):
        model = tiny_model(tiny_config("llama-tiny", *small, *layout))
        loss = model(tokens, labels=labels, loss_mask=torch.ones(2, SEQUENCE))
        loss.backward()
        results.append((model(tokens), loss, model.decoder.final_layernorm.weight.grad))
    assert model.columns == (60, 0)[torch.distributed.get_rank()]
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("gpt2-tiny", ()),
        ("gpt2-tiny", ("model.tie_embeddings=false",)),
        ("llama-tiny", ()),
        ("llama-tiny", ("model.add_qkv_bias=true", "model.kv_channels=24", "model.position_embedding=alibi")),
        ("llama-tiny", ("model.position_embedding=sinusoidal", "model.activation=squared_relu")),
    ],
)
@in_world(1)
def test_the_configuration_counts_the_models_parameters(preset: str, overrides: tuple[str, ...]) -> None:
    config = tiny_config(preset, *overrides)
    trainable = [p for p in tiny_model(config).parameters() if p.requires_grad]
    assert sum(p.numel() for p in trainable) == config.model.num_parameters()


@pytest.mark.parametrize("module", ["megalm.model.spec", "megalm.engine.megatron"])
def test_any_module_can_be_imported_first(module: str) -> None:
    """None may import Megatron-Core before the CPU support is installed."""
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}"],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
