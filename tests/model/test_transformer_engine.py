"""Transformer Engine's modules take the places of ours in a layer spec, and of nothing else."""

from megalm.model.attention import CoreAttention
from megalm.model.linear import ColumnLinear, RowLinear
from megalm.model.norm import Norm
from megalm.model.spec import layer_spec, megatron_config
from megalm.model.transformer_engine import replaced
from megalm.parallel.layout import create_layout
from tests.tiny import tiny_config
from tests.worlds import in_world

CONFIG = tiny_config()


class OtherNorm:
    pass


class OtherColumn:
    pass


@in_world(1)
def test_module_classes_are_replaced_wherever_they_stand_and_the_spec_given_stays_as_it_was() -> None:
    layout = create_layout(CONFIG.parallel)
    spec = layer_spec(megatron_config(CONFIG, layout), layout.groups, 0, 3)
    found = replaced(spec, {Norm: OtherNorm, ColumnLinear: OtherColumn})
    assert found.layer_norm is OtherNorm and len(found.layer_specs) == 3
    for layer in found.layer_specs:
        parts = layer.submodules
        assert (parts.input_layernorm, parts.pre_mlp_layernorm) == (OtherNorm, OtherNorm)
        attention, mlp = parts.self_attention, parts.mlp
        assert (
            attention.submodules.linear_qkv is OtherColumn and attention.submodules.linear_proj is RowLinear
        )
        assert attention.submodules.core_attention is CoreAttention
        assert mlp.module is spec.layer_specs[0].submodules.mlp.module
        assert mlp.submodules.linear_fc1 is OtherColumn
        assert attention.params == spec.layer_specs[0].submodules.self_attention.params
    assert (
        spec.layer_norm is Norm and spec.layer_specs[0].submodules.mlp.submodules.linear_fc1 is ColumnLinear
    )
