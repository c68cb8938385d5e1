"""Typed configuration: YAML plus `key=value` overrides, presets, and checks that need no process group."""

from megalm.config.checks import data_parallel_size
from megalm.config.load import dump_config, load_config, parse_config
from megalm.config.schema import Config, ModelConfig, ParallelConfig

__all__ = [
    "Config",
    "ModelConfig",
    "ParallelConfig",
    "data_parallel_size",
    "dump_config",
    "load_config",
    "parse_config",
]
