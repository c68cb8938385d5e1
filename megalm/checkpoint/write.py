"""Saves checkpoints in the background; one appears under its name only when it is whole on disk."""

import contextlib
import json
import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megalm import atomic, progress
from megalm.checkpoint.apart import Apart
from megalm.checkpoint.directory import (
    CHECKPOINTS,
    TENSORS,
    best_step_in,
    checkpoint_name,
    clear_remains,
    discard,
    list_checkpoints,
    point_to_best,
    prune,
    write_manifest,
)
from megalm.checkpoint.failure import Failure, SaveFailed, check_room, failure_of, on_first_rank
from megalm.checkpoint.parts import Part, plan_part, write_part
from megalm.config import Config, dump_config
from megalm.engine.base import Engine

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 1.0
"""After so long a wait for files it is looked whether they grow."""


@dataclass
class _Save:
    """A save under way: planned by all ranks, written by a thread of each."""

    step: int
    temporary: Path
    parts: list[Part]
    best: int | None
    thread: threading.Thread | None = None
    digests: dict[str, str] = field(default_factory=dict)
    error: BaseException | None = None


class CheckpointWriter:
    """Writes, completes and prunes the checkpoints of one run. All methods are collective over the world.

    on_saved: called on every rank with the step of each checkpoint that is complete. on_failed: with the step and the reason
    where storage failed, which leaves nothing behind; without it that is an OSError, as any other failure. companions: further engines of the run, each of
    which is in a folder of that name in the checkpoint, a checkpoint by itself.
    """

    def __init__(
        self,
        run_directory: Path,
        config: Config,
        engine: Engine,
        on_saved: Callable[[int], None] = lambda step: None,
        companions: Mapping[str, Engine | Apart] | None = None,
        on_failed: Callable[[int, str], None] | None = None,
    ) -> None:
        self.run_directory = run_directory
        self.config = config
        self.engine = engine
        self.on_saved, self.on_failed = on_saved, on_failed
        self.companions = companions or {}
        self.pending: _Save | None = None
        self.newest_step: int | None = None
        """Step of the newest checkpoint that this process knows to be good."""
        self.flag = torch.zeros((), dtype=torch.int32, device=engine.layout.device)
        if engine.layout.rank == 0:
            (run_directory / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
            clear_remains(run_directory)
        dist.barrier()

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Begin to save the engine and `state` (JSON); returns when the tensors are copied, not when they are written.

        The checkpoint that `state` names as the best one so far is kept, too (`directory.best_step_in`).
        Nothing happens if this process has saved that step already, or resumed from it.
        """
        self.finish()
        if step == self.newest_step:
            return
        temporary = self.run_directory / CHECKPOINTS / f".{checkpoint_name(step)}.tmp"
        counters = {name: engine.counters for name, engine in self.companions.items()}

        def prepare() -> None:
            shutil.rmtree(temporary, ignore_errors=True)
            check_room(self.run_directory)
            _prepare(temporary, self.config, state)
            for name, engine in self.companions.items():
                _prepare(temporary / name, engine.config, {"step": step, "counters": counters[name]})

        progress.beat("saving")
        if failure := on_first_rank(self.engine.layout, prepare):
            self._give_up(step, temporary, failure)
            return
        self.pending = self._plan(step, temporary, best_step_in(state))
        self.pending.thread = threading.Thread(
            target=_write, args=(self.pending,), name="checkpoint", daemon=True
        )
        self.pending.thread.start()
        if not self.config.checkpoint.async_save:
            self.finish()

    def poll(self) -> None:
        """Complete the pending save if every rank has written its part."""
        if self.pending is None:
            return
        assert self.pending.thread is not None
        self.flag.fill_(not self.pending.thread.is_alive())
        dist.all_reduce(self.flag, dist.ReduceOp.MIN)
        if self.flag.item():
            self._complete()

    def finish(self) -> None:
        """Wait for the pending save, if there is one, and complete it."""
        if self.pending is None:
            return
        assert self.pending.thread is not None
        size = 0
        while self.pending.thread.is_alive():
            self.pending.thread.join(PATIENCE_SECONDS)
            before, size = size, _size(self.pending.temporary)
            if size != before:
                progress.beat("saving")
        self._complete()

    def go_back_to(self, step: int, best: int | None = None) -> None:
        """Make the checkpoint of `step`, from which the run goes on, the newest: delete what was saved after it.

        best: the step of the best one by then.
        """
        self.finish()
        if self.engine.layout.rank == 0:
            for later, path in list_checkpoints(self.run_directory).items():
                if later > step:
                    discard(path)
            point_to_best(self.run_directory, best)
        dist.barrier()
        self.newest_step = step

    def _plan(self, step: int, temporary: Path, best: int | None) -> _Save:
        parts = [plan_part(self.engine, temporary, TENSORS)]
        save = _Save(step, temporary, parts, best)
        for name, engine in self.companions.items():
            if isinstance(engine, Apart):
                try:
                    written = engine.save(temporary / name)
                except SaveFailed as error:
                    save.error = error
                    continue
                save.digests |= {f"{name}/{file}": digest for file, digest in written.items()}
            else:
                parts.append(plan_part(engine, temporary, f"{name}/{TENSORS}"))
        return save

    def _complete(self) -> None:
        """Write the table and the manifest, then give the directory its name."""
        save, self.pending = self.pending, None
        assert save is not None
        outcomes: list[Any] = [None] * self.engine.layout.world_size
        errors = [save.error, *(error for part in save.parts for error in part.errors)]
        first = next((failure_of(error) for error in errors if error), None)
        dist.all_gather_object(outcomes, (save.digests, first))
        for rank, (_, failure) in enumerate(outcomes):
            if failure:
                self._give_up(save.step, save.temporary, failure, f"rank {rank} could not write: ")
                return
        for part in save.parts:
            part.complete()
        digests = {name: digest for part, _ in outcomes for name, digest in part.items()}
        if failure := on_first_rank(self.engine.layout, lambda: self._publish(save, digests)):
            self._give_up(save.step, save.temporary, failure, "rank 0 could not complete it: ")
            return
        self.newest_step = save.step
        self.on_saved(save.step)

    def _give_up(self, step: int, temporary: Path, failure: Failure, what: str = "") -> None:
        """Leave nothing behind that takes room, and tell of it. OSError where waiting would not help, or nobody is to be told."""
        if self.engine.layout.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        if self.on_failed is None or not failure.may_pass:
            raise OSError(f"{temporary}: {what}{failure.text}")
        self.on_failed(step, f"{what}{failure.text}")

    def _publish(self, save: _Save, digests: dict[str, str]) -> None:
        if errors := [error for part in save.parts for error in part.errors]:
            raise errors[0]
        for name in self.companions:
            within = {
                file.removeprefix(f"{name}/"): digests[file]
                for file in digests
                if file.startswith(f"{name}/")
            }
            write_manifest(save.temporary / name, within)
        write_manifest(save.temporary, digests)
        for part in save.parts:
            atomic.sync_directory(save.temporary / part.folder)
            atomic.sync_directory((save.temporary / part.folder).parent)
        atomic.sync_directory(save.temporary)
        save.temporary.rename(save.temporary.with_name(checkpoint_name(save.step)))
        atomic.sync_directory(save.temporary.parent)
        keep = self.config.checkpoint
        try:
            point_to_best(self.run_directory, save.best)
            prune(self.run_directory, keep.keep_last, keep.keep_every, save.best)
        except OSError as error:  # the checkpoint itself is whole
            logger.warning("old checkpoints could not be deleted: %s", error)


def _prepare(folder: Path, config: Config, state: dict[str, Any]) -> None:
    """Make a checkpoint's folder with all but its tensors and manifest."""
    (folder / TENSORS).mkdir(parents=True)
    dump_config(config, folder / "config.yaml")
    atomic.write_text(folder / "state.json", json.dumps(state, indent=1))


def _size(folder: Path) -> int:
    """Bytes in the files below `folder` by now, which other ranks may be writing or removing."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


def _write(save: _Save) -> None:
    """Write this rank's tensors; runs in a thread and makes no collective call."""
    try:
        for part in save.parts:
            write_part(part, save.digests)
    except BaseException as error:  # told to all ranks by the main thread
        save.error = error
