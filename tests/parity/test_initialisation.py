"""Initial weights are the same bits under every layout."""

import functools

import pytest
import torch
from torch import Tensor

from megalm.model.build import build_chunks
from megalm.model.init import draw_rows, sharded_parameters
from megalm.parallel.layout import create_layout
from megalm.testing import run_distributed
from tests.parity.shards import Piece, assemble, pieces_of
from tests.tiny import VOCABULARY, tiny_config

TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
PP2 = "parallel.pipeline_model_parallel_size=2"
VP2 = "parallel.virtual_pipeline_model_parallel_size=2"
EP2 = "parallel.expert_model_parallel_size=2"
LAYOUTS = {
    "TP2": (2, (TP2,)),
    "PP2": (2, (PP2,)),
    "DP2": (2, ()),
    "TP4": (4, ("parallel.tensor_model_parallel_size=4", "model.num_query_groups=4")),
    "PP4": (4, ("parallel.pipeline_model_parallel_size=4",)),
    "TP2+SPxPP2": (4, (TP2, SP, PP2)),
    "PP2xVP2": (2, (PP2, VP2)),
    "PP2xVP2xTP2": (4, (PP2, VP2, TP2)),
    "PP2 uneven": (2, (PP2, "parallel.pipeline_layers=[3, 1]")),
    "PP2xVP2 uneven": (2, (PP2, VP2, "parallel.pipeline_layers=[0, 2, 1, 1]")),
}
VOCABULARY_WEIGHTS = ("embedding.word_embeddings.weight", "output_layer.weight")


def initial_pieces(preset: str, overrides: tuple[str, ...]) -> list[Piece]:
    config = tiny_config(preset, "model.num_layers=4", "precision.dtype=fp32", *overrides)
    layout = create_layout(config.parallel)
    chunks = build_chunks(config, layout)
    return [piece for chunk in chunks for piece in pieces_of(sharded_parameters(chunk, layout))]


@functools.cache
def initial_weights(world_size: int, preset: str, *overrides: str) -> dict[str, Tensor]:
    return assemble(run_distributed(initial_pieces, world_size, preset, overrides))


def assert_bit_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal bits in all real rows, zeros in vocabulary padding."""
    assert found.keys() == expected.keys()
    for name in expected:
        rows = VOCABULARY if name in VOCABULARY_WEIGHTS else len(expected[name])
        assert torch.equal(found[name][:rows], expected[name][:rows]), name
        assert not found[name][rows:].any(), f"{name}: padding is not zero"


@pytest.mark.parametrize("tied", ["true", "false"])
@pytest.mark.parametrize("preset", ["gpt2-tiny", "llama-tiny"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_starts_from_the_same_bits(layout: str, preset: str, tied: str) -> None:
    world_size, overrides = LAYOUTS[layout]
    model = (f"model.tie_embeddings={tied}", *(o for o in overrides if o.startswith("model.")))
    expected = initial_weights(1, preset, *model)
    assert expected["embedding.word_embeddings.weight"].shape[0] == VOCABULARY
    assert ("output_layer.weight" in expected) == (tied == "false")
    assert_bit_equal(initial_weights(world_size, preset, *model, *overrides), expected)


EXPERT_LAYOUTS = {
    "EP2": (2, (EP2,)),
    "TP2": (2, (TP2,)),
    "EP4": (4, ("parallel.expert_model_parallel_size=4",)),
    "EP2xTP2": (4, (EP2, TP2)),
    "EP2xPP2": (4, (EP2, PP2)),
}


@pytest.mark.parametrize("frequency", [1, 2])
@pytest.mark.parametrize("layout", EXPERT_LAYOUTS)
def test_experts_start_from_the_same_bits(layout: str, frequency: int) -> None:
    world_size, overrides = EXPERT_LAYOUTS[layout]
    model = (f"model.moe.layer_frequency={frequency}", "model.moe.shared_expert_ffn_hidden_size=48")
    expected = initial_weights(1, "mixtral-tiny", *model)
    experts = {name: weight for name, weight in expected.items() if ".mlp.experts." in name}
    assert len(experts) == 4 // frequency * 4 * 2
    assert len({weight.sum().item() for weight in experts.values()}) == len(experts)
    assert_bit_equal(initial_weights(world_size, "mixtral-tiny", *model, *overrides), expected)


@pytest.mark.parametrize("multiple", [64, 128])
@pytest.mark.parametrize("world_size", [1, 2])
def test_vocabulary_padding_leaves_the_weights_alone(multiple: int, world_size: int) -> None:
    layout = (TP2,) if world_size == 2 else ()
    padding = f"model.make_vocab_size_divisible_by={multiple}"
    found = initial_weights(world_size, "llama-tiny", padding, *layout)
    assert len(found["output_layer.weight"]) % (multiple * world_size) == 0
    assert len(found["output_layer.weight"]) > VOCABULARY
    assert_bit_equal(found, initial_weights(1, "llama-tiny"))


def test_each_seed_and_each_parameter_draws_its_own_weights() -> None:
    first, other = initial_weights(1, "llama-tiny"), initial_weights(1, "llama-tiny", "run.seed=2")
    matrices = {name: weight for name, weight in first.items() if weight.dim() == 2}
    for name, weight in matrices.items():
        assert not torch.equal(weight, other[name]), name
    same_shape = [w for name, w in matrices.items() if name.endswith("linear_proj.weight")]
    assert len(same_shape) == 4
    assert len({w.sum().item() for w in same_shape}) == 4


def test_weights_have_the_stated_distribution() -> None:
    """Matrices normal(0, std), those that end a residual branch std / sqrt(2 layers), norms one, biases zero."""
    for name, weight in initial_weights(1, "gpt2-tiny", "model.init_method_std=0.03").items():
        if weight.dim() == 1:
            expected = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            assert (weight == expected).all(), name
            continue
        residual = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
        std = 0.03 / 8**0.5 if residual else 0.03
        error = weight.numel() ** -0.5
        assert weight.mean().abs() < 5 * error * std, name
        assert weight.std() == pytest.approx(std, rel=5 * error), name


def test_rows_can_be_drawn_in_any_pieces() -> None:
    whole = draw_rows(1, "name", 0, 300, 8)
    pieces = [draw_rows(1, "name", start, 50, 8) for start in range(0, 300, 50)]
    assert torch.equal(torch.cat(pieces), whole)
    assert torch.equal(draw_rows(1, "name", 63, 2, 8), whole[63:65])
