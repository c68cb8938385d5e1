"""Layers that can be kept of a model: those that there are, in places of their kind."""

from pathlib import Path

import pytest

from megalm.config.model import ModelConfig
from megalm.convert.layers import check_layers
from megalm.errors import UserError


@pytest.mark.parametrize("layers", [[], [4], [-1, 0]])
def test_layers_that_a_model_lacks_are_refused(layers: list[int]) -> None:
    with pytest.raises(UserError, match=r"has the layers 0 to 3, asked for are \["):
        check_layers(ModelConfig(num_layers=4), layers, Path("here"))


def test_layers_with_experts_stay_where_experts_are() -> None:
    alternating = ModelConfig(num_layers=4, moe={"num_experts": 2, "layer_frequency": 2})
    check_layers(alternating, [0, 3], Path("here"))
    with pytest.raises(UserError, match="layer 2 of here cannot become layer 1: one of them has experts"):
        check_layers(alternating, [0, 2], Path("here"))
