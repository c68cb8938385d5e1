"""Positions follow their papers."""

import math

import pytest
import torch

from megalm.config.model import ModelConfig
from megalm.model.positions import Rotary, alibi_bias, alibi_slopes, rotary_frequencies, sinusoidal_table
from megalm.model.state import ForwardState


def test_alibi_slopes_of_8_and_16_heads_are_the_papers() -> None:
    assert alibi_slopes(8).tolist() == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    expected = [0.5**0.5, 0.5, 0.5**1.5, 0.25]  # "2^-0.5, 2^-1, 2^-1.5, ..., 2^-8"
    assert alibi_slopes(16).tolist()[:4] == pytest.approx(expected)
    assert alibi_slopes(16)[-1] == 2.0**-8


def test_alibi_slopes_of_12_heads_are_those_of_8_and_every_other_of_16() -> None:
    """As the authors' code does for head counts that are no power of two."""
    assert alibi_slopes(12).tolist() == pytest.approx(
        alibi_slopes(8).tolist() + alibi_slopes(16)[0::2][:4].tolist()
    )


def test_alibi_bias_is_minus_slope_times_distance() -> None:
    bias = alibi_bias(alibi_slopes(8), 5, 5)
    assert bias.shape == (1, 8, 5, 5)
    assert bias[0, 0, 4].tolist() == [-2.0, -1.5, -1.0, -0.5, 0.0]
    assert bias[0, 2, 3, 1] == -2 / 8


def test_alibi_bias_of_the_last_tokens_is_that_of_all_tokens_there() -> None:
    whole = alibi_bias(alibi_slopes(8), 7, 7)
    assert torch.equal(alibi_bias(alibi_slopes(8), 3, 7), whole[:, :, 4:])


def test_sinusoidal_table_is_the_papers_formula() -> None:
    table = sinusoidal_table(50, 16)
    assert table.shape == (50, 16)
    for position in (0, 1, 17, 49):
        for pair in range(8):
            angle = position / 10000 ** (2 * pair / 16)
            assert float(table[position, 2 * pair]) == pytest.approx(math.sin(angle), abs=1e-14)
            assert float(table[position, 2 * pair + 1]) == pytest.approx(math.cos(angle), abs=1e-14)


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    rotary = Rotary(ModelConfig(hidden_size=64, num_attention_heads=4))
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 16, generator=generator, dtype=torch.float64)

    def score(query_position: int, key_position: int) -> float:
        turned = [
            rotary(x, ForwardState(positions_BS=torch.tensor([[p]])))
            for x, p in ((query, query_position), (key, key_position))
        ]
        return float((turned[0] * turned[1]).sum())

    assert score(7, 3) == pytest.approx(score(1004, 1000), rel=1e-9)
    assert score(0, 0) == pytest.approx(float((query * key).sum()), rel=1e-12)
    assert score(7, 3) != pytest.approx(score(7, 4), rel=1e-3)


def test_rotary_turns_each_pair_by_position_times_frequency() -> None:
    model = ModelConfig(hidden_size=16, num_attention_heads=2, rope_theta=100.0)
    x = torch.zeros(3, 1, 1, 8, dtype=torch.float64)
    x[..., :4] = 1.0  # the pair (i, i + 4) is the point (1, 0)
    turned = Rotary(model)(x, ForwardState())
    for position in range(3):
        for pair in range(4):
            angle = position * 100.0 ** (-2 * pair / 8)
            point = turned[position, 0, 0, [pair, pair + 4]].tolist()
            assert point == pytest.approx([math.cos(angle), math.sin(angle)], abs=1e-14)


def test_llama31_scaling_stretches_long_wavelengths_only() -> None:
    plain = ModelConfig(hidden_size=512, num_attention_heads=4, rope_theta=500000.0)
    scaled = plain.model_copy(update={"rope_scaling_factor": 8.0, "rope_original_max_sequence_length": 8192})
    ratio = rotary_frequencies(plain) / rotary_frequencies(scaled)
    wavelengths = 2 * math.pi / rotary_frequencies(plain)
    assert (ratio[wavelengths < 8192 / 4] == 1).all()
    assert torch.allclose(ratio[wavelengths > 8192], torch.tensor(8.0, dtype=torch.float64))
    between = ratio[(wavelengths > 8192 / 4) & (wavelengths < 8192)]
    assert len(between) > 0 and ((between > 1) & (between < 8)).all()
    assert (ratio.diff() >= 0).all()
