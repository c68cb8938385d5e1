"""Puts Transformer Engine's modules into a layer spec: norms (`model.norm: te`) and linear layers that multiply in fp8."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

from megalm.config.schema import Config
from megalm.model.linear import ColumnLinear, RowLinear
from megalm.model.norm import Norm


def with_transformer_engine(spec: TransformerBlockSubmodules, config: Config) -> TransformerBlockSubmodules:
    """Return the spec with the modules that the configuration takes from Transformer Engine; their weights keep their names."""
    replacements: dict[type, type] = {}
    if config.model.norm == "te":
        from megatron.core.extensions.transformer_engine import TENorm

        replacements[Norm] = TENorm
    if config.precision.fp8 != "none":
        from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TERowParallelLinear

        replacements |= {ColumnLinear: TEColumnParallelLinear, RowLinear: TERowParallelLinear}
    return replaced(spec, replacements) if replacements else spec


def replaced(spec: Any, replacements: dict[type, type]) -> Any:
    """A copy of a spec, whatever its nesting, with other module classes."""
    if isinstance(spec, type):
        return replacements.get(spec, spec)
    if isinstance(spec, list):
        return [replaced(part, replacements) for part in spec]
    if is_dataclass(spec) and not isinstance(spec, type):
        # what a ModuleSpec hands to its module as plain values is no part of the structure
        names = ("module", "submodules") if isinstance(spec, ModuleSpec) else [f.name for f in fields(spec)]
        return replace(spec, **{name: replaced(getattr(spec, name), replacements) for name in names})
    return spec
