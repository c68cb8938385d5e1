"""Typed configuration: YAML plus `key=value` overrides, presets, and checks that need no process group."""

from megalm.config.load import dump_config, load_config, parse_config
from megalm.config.schema import Config, ModelConfig, ParallelConfig

__all__ = ["Config", "ModelConfig", "ParallelConfig", "dump_config", "load_config", "parse_config"]
