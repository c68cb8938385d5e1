"""Parameters learn with the rates and decays of their groups and layers, in either engine, and no pattern is in vain."""

import re

import pytest
import torch

from megalm.engine.megatron import MegatronEngine
from megalm.engine.parameter_groups import parameter_shares, rates_by_name
from megalm.errors import UserError
from megalm.model.parameters import parameter_names
from megalm.parallel.layout import create_layout
from megalm.train.pretrain import NextTokenLoss
from tests.engine.test_optimizer import PlainTrainer
from tests.tiny import LR, tiny_config, tiny_engine, tiny_microbatches
from tests.worlds import in_world

TP2 = "parallel.tensor_model_parallel_size=2"
PP2 = "parallel.pipeline_model_parallel_size=2"
VP2 = "parallel.virtual_pipeline_model_parallel_size=2"
GROUPS = (
    "optimizer.groups=["
    "{name: first, match: [decoder.layers.0.*qkv*], lr_scale: 4, weight_decay: 0.7}, "
    "{name: rest, match: ['*qkv*', '*norm*'], lr_scale: 2}, "
    "{name: head, match: [output_layer.*], weight_decay: 0}]"
)
DECAY = ("optimizer.layer_lr_decay=0.5", "optimizer.weight_decay=0.3")


def expected_share(name: str) -> tuple[float, float]:
    """(lr_scale, weight_decay) in a model of 2 layers, by hand."""
    layer = re.search(r"layers\.(\d)", name)
    scale = 0.125 if name.startswith("embedding") else {"0": 0.25, "1": 0.5}[layer[1]] if layer else 1.0
    decay = 0.0 if name.endswith("norm.weight") else 0.3
    if "layers.0." in name and "qkv" in name:
        return 4 * scale, 0.7
    if "qkv" in name or "norm" in name:
        return 2 * scale, decay
    return scale, 0.0 if name.startswith("output_layer") else decay


@in_world(1)
def test_five_steps_equal_torchs_adamw_with_a_group_for_each_parameter() -> None:
    config = tiny_config("llama-tiny", "model.tie_embeddings=false", GROUPS, *DECAY)
    layout = create_layout(config.parallel)
    engine, plain = MegatronEngine(config, layout), PlainTrainer(config, layout)
    names = parameter_names([plain.model], layout)
    shares = [expected_share(name) for name in names.values()]
    plain.optimizer = torch.optim.AdamW(
        [{"params": [p], "weight_decay": decay} for p, (_, decay) in zip(names, shares, strict=True)],
        betas=(config.optimizer.adam_beta1, config.optimizer.adam_beta2),
        eps=config.optimizer.adam_eps,
    )
    for step in range(5):
        microbatches, lr = tiny_microbatches(step, layout), LR * (step + 1)
        metrics = engine.step(microbatches, NextTokenLoss(), lr)
        rates = [lr * scale for scale, _ in shares]
        _, norm = plain.step(microbatches, rates)
        assert metrics.grad_norm == pytest.approx(norm, rel=1e-12)
    expected = dict(plain.model.named_parameters())
    for name, parameter in engine.model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("layout", [(TP2,), (PP2, VP2)], ids=["TP2", "PP2xVP2"])
@in_world(2)
def test_layers_are_counted_over_the_whole_model(layout: tuple[str, ...]) -> None:
    config = tiny_config(
        "llama-tiny",
        "model.tie_embeddings=true",
        "model.num_layers=4",
        "optimizer.layer_lr_decay=0.5",
        *layout,
    )
    engine = tiny_engine(config)
    fresh = tiny_engine(config).chunks
    names = parameter_names(fresh, engine.layout)
    shares = parameter_shares(fresh, config, engine.layout)
    assert shares.keys() == names.keys()
    for parameter, share in shares.items():
        name = names[parameter]
        layer = re.search(r"layers\.(\d)", name)
        # the tied matrix of the last stage has the embedding's rate, as its copy on the first one
        power = 5 if "embedding" in name else 4 - int(layer[1]) if layer else 0
        assert share.lr_scale == 0.5**power, name


@in_world(2)
def test_a_pattern_that_fits_nothing_is_named_on_every_rank() -> None:
    wrong = (
        "optimizer.groups=[{name: a, match: [decoder.layers.0.*, decoder.layers.0.mlp.linear_fc3.weight]}]"
    )
    with pytest.raises(
        UserError, match="groups.0.match: .*linear_fc3.* fits no parameter: did you mean .*fc1"
    ):
        tiny_engine(tiny_config("llama-tiny", wrong, PP2))
    with pytest.raises(
        UserError, match=r"train.freeze: 'decoder.layers.7.\*' fits no parameter.*layers.N.mlp"
    ):
        tiny_engine(tiny_config("llama-tiny", "train.freeze=[decoder.layers.7.*]", PP2))
    with pytest.raises(UserError, match="leave nothing to train"):
        tiny_engine(tiny_config("llama-tiny", "train.freeze=['*']", PP2))


def test_each_groups_rate_is_logged() -> None:
    config = tiny_config("llama-tiny", GROUPS, "optimizer.layer_lr_decay=0.5")
    assert rates_by_name(config, 1e-3) == {
        "lr_first": 4e-3,
        "lr_rest": 2e-3,
        "lr_head": 1e-3,
        "lr_first_layer": 0.25e-3,
    }
    assert rates_by_name(tiny_config(), 1e-3) == {}
