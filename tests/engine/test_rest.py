"""A frozen engine rests and wakes up with the weights that it had; one that is trained is refused."""

import pytest
import torch

from megalm.engine.build import build_engine
from megalm.engine.rest import Resting
from megalm.parallel.layout import create_layout
from megalm.train.pretrain import NextTokenLoss
from tests.tiny import tiny_config, tiny_engine, tiny_microbatches
from tests.worlds import in_world


@in_world(1)
def test_on_a_cpu_the_weights_stay_where_they_are() -> None:
    config = tiny_config()
    engine = build_engine(config, create_layout(config.parallel), train=False)
    places = [parameter.data_ptr() for parameter in engine.model.parameters()]
    batch = tiny_microbatches(0, engine.layout)
    before = engine.evaluate(batch, NextTokenLoss())[0]
    rest = Resting(engine)
    rest.offload()
    rest.offload()
    assert not rest.is_awake
    with rest.awake():
        assert rest.is_awake
        assert (engine.evaluate(batch, NextTokenLoss())[0] == before).all()
    assert not rest.is_awake and [parameter.data_ptr() for parameter in engine.model.parameters()] == places


@in_world(1)
def test_an_engine_that_is_trained_is_refused() -> None:
    with pytest.raises(ValueError, match="an engine that is trained cannot rest"):
        Resting(tiny_engine(tiny_config()))
    assert torch.is_grad_enabled()
