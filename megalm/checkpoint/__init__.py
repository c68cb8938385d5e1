"""Save, load and reshard: weights and optimizer in one form that every layout reads."""

from megalm.checkpoint.directory import find_checkpoint, list_checkpoints, read_config
from megalm.checkpoint.read import load_training_state, load_weights
from megalm.checkpoint.write import CheckpointWriter

__all__ = [
    "CheckpointWriter",
    "find_checkpoint",
    "list_checkpoints",
    "load_training_state",
    "load_weights",
    "read_config",
]
