"""Save, load and reshard: weights and optimizer in one form that every layout reads."""

from megalm.parallel import cpu

cpu.install()  # before any module here imports Megatron-Core

from megalm.checkpoint.directory import (  # noqa: E402
    find_checkpoint,
    list_checkpoints,
    read_config,
    tokenizer_of,
)
from megalm.checkpoint.read import load_training_state, load_weights, newest_intact  # noqa: E402
from megalm.checkpoint.write import CheckpointWriter  # noqa: E402

__all__ = [
    "CheckpointWriter",
    "find_checkpoint",
    "list_checkpoints",
    "load_training_state",
    "load_weights",
    "newest_intact",
    "read_config",
    "tokenizer_of",
]
