"""Presets are the published models, counted by their parameters."""

from pathlib import Path

import pytest

from megalm.config import parse_config
from megalm.config.presets import PRESETS
from megalm.config.reference import render_reference


@pytest.mark.parametrize(
    ("preset", "vocab_size", "parameters"),
    [  # what Hugging Face counts for the published checkpoints
        ("gpt2-124m", 50257, 124_439_808),
        ("gpt2-355m", 50257, 354_823_168),
        ("gpt2-774m", 50257, 774_030_080),
        ("gpt2-1.5b", 50257, 1_557_611_200),
        ("llama-7b", 32000, 6_738_415_616),
        ("llama-13b", 32000, 13_015_864_320),
        ("llama-8b", 128256, 8_030_261_248),
        ("llama-70b", 128256, 70_553_706_496),
        ("llama-405b", 128256, 405_853_388_800),
        ("llama-1b", 128256, 1_235_814_400),
        ("llama-3b", 128256, 3_212_749_824),
        ("mixtral-8x7b", 32000, 46_702_792_704),
        # with their heads: 624,188 and 1,084,220 more than the 109,482,240 and 335,141,888 of the encoders with pooler
        ("bert-base", 30522, 110_106_428),
        ("bert-large", 30522, 336_226_108),
    ],
)
def test_preset_has_the_published_number_of_parameters(preset, vocab_size, parameters):
    config = parse_config(
        {"model": {"preset": preset, "vocab_size": vocab_size}, "batch": {"seq_length": 512}}
    )
    assert config.model.num_parameters() == parameters


def test_every_preset_is_a_valid_configuration():
    for preset in PRESETS:
        parse_config({"model": {"preset": preset}, "batch": {"seq_length": 512}})


def test_flops_count_matrices_six_times_and_attention_by_length():
    model = parse_config({"model": {"preset": "llama-7b", "vocab_size": 32000}}).model
    matrices = 6_738_415_616 - 32000 * 4096
    assert model.flops_per_token(2048) == 6 * matrices + 12 * 32 * 2048 * 4096


def test_flops_count_the_experts_that_a_token_goes_to():
    model = parse_config({"model": {"preset": "mixtral-8x7b", "vocab_size": 32000}}).model
    idle = 32 * 6 * 3 * 4096 * 14336
    assert model.num_active_parameters() == 46_702_792_704 - idle
    matrices = model.num_active_parameters() - 32000 * 4096
    assert model.flops_per_token(2048) == 6 * matrices + 12 * 32 * 2048 * 4096


def test_a_section_given_in_part_is_filled_from_the_preset():
    given = {"model": {"preset": "mixtral-8x7b", "moe": {"router_top_k": 1, "norm_topk_prob": False}}}
    moe = parse_config(given, ["model.moe.z_loss_coeff=1e-3"]).model.moe
    assert (moe.num_experts, moe.router_top_k, moe.z_loss_coeff) == (8, 1, 1e-3)
    assert parse_config({"model": {"preset": "mixtral-8x7b"}}).model.moe.router_top_k == 2


def test_reference_page_is_up_to_date():
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text(encoding="utf-8") == render_reference(PRESETS), (
        "run: python tools/config_reference.py > docs/configuration.md"
    )
