"""Reads checkpoints written under any layout into an engine of this one."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing

from megalm.checkpoint.directory import TENSORS, read_state, verify
from megalm.checkpoint.metadata import read_tensors
from megalm.engine.base import Engine
from megalm.errors import UserError
from megalm.parallel.layout import Layout


def load_weights(engine: Engine, path: str | Path) -> None:
    """Read the weights of the checkpoint at `path` into the engine. Collective. UserError if it is damaged."""
    _load(engine, Path(path), with_optimizer=False)


def load_training_state(engine: Engine, path: str | Path) -> dict[str, Any]:
    """Read weights, optimizer and counters; return what the loop saved (step, data position). Collective."""
    state = read_state(path)
    _load(engine, Path(path), with_optimizer=True)
    engine.counters = state["counters"]
    return state


def damage(path: str | Path, layout: Layout) -> str | None:
    """What is wrong with the checkpoint's files, the same answer on every rank; the ranks share the reading."""
    found: list[str | None] = [None] * layout.world_size
    dist.all_gather_object(found, verify(path, layout.rank, layout.world_size))
    return next((text for text in found if text), None)


def _load(engine: Engine, path: Path, with_optimizer: bool) -> None:
    wrong = damage(path, engine.layout)
    if wrong:
        raise UserError(f"{wrong}; use another checkpoint")
    stored: dict[str, torch.dtype] = {name: info.dtype for name, info in read_tensors(path).items()}
    wanted = engine.empty_state(stored, with_optimizer)
    engine.load(dist_checkpointing.load(wanted, str(path / TENSORS)))
