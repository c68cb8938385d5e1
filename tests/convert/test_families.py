"""A config.json says as much to us as to transformers: entries that are missing mean the same."""

from typing import Any

import pytest
from transformers import AutoConfig

from megalm.convert.families import FAMILIES
from megalm.errors import UserError


@pytest.mark.parametrize("name", FAMILIES)
def test_what_config_json_leaves_out_is_what_transformers_takes(name: str) -> None:
    family, settings = FAMILIES[name], AutoConfig.for_model(name).to_dict()
    whole, optional = family.read(settings, "config.json"), 0
    for key in settings:
        try:
            found = family.read({k: v for k, v in settings.items() if k != key}, "config.json")
        except UserError as error:
            assert f"{key} is missing" in str(error)
            continue
        assert found == whole, key
        optional += 1
    assert optional


@pytest.mark.parametrize(
    ("name", "entries", "longest"),
    [
        ("mistral", {"sliding_window": 512}, 512),
        ("mistral", {"sliding_window": None}, 8192),
        ("mixtral", {"sliding_window": 512}, 512),
        ("qwen2", {"sliding_window": 512, "use_sliding_window": True}, 512),
        ("qwen3", {"sliding_window": 512, "use_sliding_window": False}, 8192),
    ],
)
def test_sequences_are_no_longer_than_a_sliding_window(
    name: str, entries: dict[str, Any], longest: int
) -> None:
    settings = AutoConfig.for_model(name).to_dict() | {"max_position_embeddings": 8192} | entries
    assert FAMILIES[name].read(settings, "config.json")["max_sequence_length"] == longest
