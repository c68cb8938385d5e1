"""Save, load and reshard: weights and optimizer in one form that every layout reads.

What needs torch is imported when it is asked for: a command looks for a checkpoint before it starts processes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from megalm.checkpoint.directory import (
    find_checkpoint,
    list_checkpoints,
    read_config,
    tokenizer_of,
)

if TYPE_CHECKING:
    from megalm.checkpoint.read import load_training_state, load_weights, newest_intact
    from megalm.checkpoint.write import CheckpointWriter

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

_MODULES = {
    "CheckpointWriter": "write",
    "load_training_state": "read",
    "load_weights": "read",
    "newest_intact": "read",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
