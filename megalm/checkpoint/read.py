"""Reads checkpoints written under any layout into an engine of this one."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from megalm import progress
from megalm.checkpoint.directory import (
    TENSORS,
    find_base,
    list_checkpoints,
    read_config,
    read_state,
    set_aside,
    verify,
)
from megalm.checkpoint.metadata import TensorInfo, read_tensors
from megalm.config import Config
from megalm.engine.base import Engine
from megalm.errors import UserError
from megalm.model.init import shards_in
from megalm.model.lora import is_adapter
from megalm.model.quantized import form_of_checkpoint
from megalm.parallel import cpu
from megalm.parallel.layout import Layout

cpu.install()

from megatron.core import dist_checkpointing  # noqa: E402
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy  # noqa: E402

logger = logging.getLogger(__name__)

T = TypeVar("T")

PORTION_BYTES = 1 << 30
"""About as much of a checkpoint is in a rank's memory at once, beside the engine; one tensor at least."""


def load_weights(engine: Engine, path: str | Path, with_optimizer: bool = False) -> None:
    """Read the weights of the checkpoint at `path` into the engine; of one with adapters those that they adapt first.

    with_optimizer: and the optimizer's moments and its count of updates. Collective. Raises UserError if the checkpoint is
    damaged or belongs to another model, or holds adapters and the engine's model has none.
    """
    path = Path(path)
    _check_intact(path, engine.layout)
    config = read_config(path)
    _check_form(engine, config, path)
    if config.lora.rank:
        if not any(is_adapter(name) for name, _ in engine.model.named_parameters()):
            raise UserError(
                f"{path} holds adapters alone; merge them with their model first: megalm merge {path} DEST"
            )
        base = find_base(path, config)
        _check_intact(base, engine.layout)
        _check_form(engine, read_config(base), base)
        _load(engine, base, with_optimizer=False)
    if not with_optimizer:
        _load(engine, path, with_optimizer=False)
        return
    _check_optimizer(path)
    _load(engine, path, with_optimizer=True)
    counters = read_state(path)["counters"]
    engine.counters = {**engine.counters, **counters, "steps_begun": 0}


def _check_form(engine: Engine, config: Config, path: Path) -> None:
    """UserError where the checkpoint's linear layers lie in another form than the engine's."""
    stored, wanted = form_of_checkpoint(config.quantization), engine.model.config.weight_form
    if stored is None:
        return
    if wanted is None or (stored.name, stored.group_size) != (wanted.name, wanted.group_size):
        raise UserError(
            f"{path} holds its linear layers in {config.quantization.method}, and whole weights are wanted here: make them by "
            f"`megalm merge {path} DEST`"
        )


def _check_optimizer(path: Path) -> None:
    if not any(name.startswith("optimizer.") for name in read_tensors(path)):
        raise UserError(f"{path} holds no optimizer: leave run.load_optimizer out")


def load_training_state(engine: Engine, path: str | Path, verified: bool = False) -> dict[str, Any]:
    """Read weights, optimizer and counters; return what the loop saved (step, data position). Collective.

    verified: the checkpoint comes from `newest_intact`, so its checksums need no second reading. Raises UserError if it
    is damaged or belongs to another model.
    """
    if not verified:
        _check_intact(Path(path), engine.layout)
    state = read_state(path)
    _load(engine, Path(path), with_optimizer=True)
    engine.counters = state["counters"]
    return state


def newest_intact(
    run_directory: str | Path,
    layout: Layout,
    last_step: int | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> Path | None:
    """The newest checkpoint (of `last_step` at the latest) whose checksums hold, None if there is none. Collective.

    Damaged ones on the way are named in warnings and, where an intact one is found, set aside, so that they neither
    stand in its way nor count as kept. tell: called with a line for each of these, on every rank.
    """
    found = shared_list(run_directory, layout)
    candidates = [step for step in found if last_step is None or step <= last_step]
    damaged: dict[Path, str] = {}
    for step in reversed(candidates):
        path = found[step]
        wrong = damage(path, layout)
        if wrong is None:
            if layout.rank == 0:
                for other in damaged:
                    set_aside(other)
            dist.barrier()
            for other, said in damaged.items():
                tell(f"{said}; {other.name} is set aside, the run goes on from {path.name}")
            return path
        if layout.rank == 0:
            before = "" if step == candidates[0] else "; trying the checkpoint before it"
            logger.warning("%s%s", wrong, before)
        damaged[path] = wrong
    return None


def shared_list(run_directory: str | Path, layout: Layout) -> dict[int, Path]:
    """`list_checkpoints` as rank 0 sees it, so that a slow network file system cannot make ranks disagree. Collective."""
    found = [list_checkpoints(run_directory) if layout.rank == 0 else {}]
    dist.broadcast_object_list(found, device=layout.device)
    return found[0]


def damage(path: str | Path, layout: Layout) -> str | None:
    """What is wrong with the checkpoint's files, the same answer on every rank; the ranks share the reading. Collective."""
    found: list[str | None] = [None] * layout.world_size
    dist.all_gather_object(found, verify(path, layout.rank, layout.world_size))
    return next((text for text in found if text), None)


def _check_intact(path: Path, layout: Layout) -> None:
    if wrong := damage(path, layout):
        raise UserError(f"{wrong}; use another checkpoint")


def _load(engine: Engine, path: Path, with_optimizer: bool) -> None:
    def look() -> dict[str, TensorInfo]:
        stored = read_tensors(path)
        _check_common(path)
        _check_vocabulary(engine, path)
        return stored

    stored = _together(look, engine.layout)

    def choose() -> dict[str, Any]:
        wanted = engine.empty_state({name: info.dtype for name, info in stored.items()}, with_optimizer)
        _check_shapes(wanted, stored, path)
        return wanted

    wanted = _together(choose, engine.layout)
    for portion in _portions(wanted, engine.layout):
        engine.load(_read(portion, path))


def _together(check: Callable[[], T], layout: Layout) -> T:
    """What `check` returns; UserError on every rank where it has one for any, as one stage alone may. Collective."""
    result, refusal = None, None
    try:
        result = check()
    except UserError as error:
        refusal = str(error)
    refusals: list[str | None] = [None] * layout.world_size
    dist.all_gather_object(refusals, refusal)
    if first := next((text for text in refusals if text), None):
        raise UserError(first)
    return cast(T, result)


def _portions(wanted: Mapping[str, Any], layout: Layout) -> list[dict[str, Any]]:
    """Cut into parts of about PORTION_BYTES, as many on every rank; a stage that wants less gets empty ones. Collective."""
    portions: list[dict[str, Any]] = []
    room = 0
    for place, shard in wanted.items():
        if room <= 0:
            portions.append({})
            room = PORTION_BYTES
        portions[-1][place] = shard
        room -= shard.data.nbytes
    count = torch.tensor(len(portions), device=layout.device)
    dist.all_reduce(count, dist.ReduceOp.MAX)
    return portions + [{} for _ in range(int(count) - len(portions))]


def _read(portion: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Whole tensors on the CPU. Collective."""
    progress.beat()
    empty = {
        place: replace(shard, data=torch.zeros_like(shard.data, device="cpu"))
        for place, shard in portion.items()
    }
    # the strategy is named so that the checkpoint cannot choose another reader; access is not validated because a
    # portion may hold some layers of a tensor without the others
    return dist_checkpointing.load(
        empty, str(path / TENSORS), TorchDistLoadShardedStrategy(), validate_access_integrity=False
    )


def _check_common(path: Path) -> None:
    """The library loads common.pt as torch's environment says, maybe as a pickle that runs code; ours holds nothing."""
    file = path / TENSORS / "common.pt"
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{file}: not a plain file of torch ({_line(error)}); do not use this checkpoint"
        ) from None
    if content != {}:
        raise UserError(f"{file}: should hold nothing; do not use this checkpoint")


def _check_vocabulary(engine: Engine, path: Path) -> None:
    """Padding lets tables of any number of rows be read, so the real vocabularies are compared."""
    theirs, ours = read_config(path).model.vocab_size, engine.model.real_vocab_size
    if theirs != ours:
        raise UserError(f"{path} holds a model of vocabulary {theirs}, this one has {ours}: {_another(path)}")


def _check_shapes(wanted: Mapping[str, Any], stored: Mapping[str, TensorInfo], path: Path) -> None:
    for shard in shards_in(wanted):
        found = stored[shard.key].shape
        if found != tuple(shard.global_shape) and not shard.allow_shape_mismatch:
            raise UserError(
                f"{path}: {shard.key} has shape {found}, this model's has {tuple(shard.global_shape)}: {_another(path)}"
            )


def _another(path: Path) -> str:
    return f"it is another model; take the section `model` of {path / 'config.yaml'}"


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
