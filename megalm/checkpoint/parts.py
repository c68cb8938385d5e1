"""The tensors of one engine on their way into a checkpoint: planned by all its ranks, written by each, completed by all."""

import contextlib
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megalm import progress
from megalm.engine.base import Engine
from megalm.hashes import sha256_of
from megalm.parallel import cpu

cpu.install()

from megatron.core import dist_checkpointing  # noqa: E402
from megatron.core.dist_checkpointing import serialization  # noqa: E402
from megatron.core.dist_checkpointing.strategies import filesystem_async  # noqa: E402
from megatron.core.dist_checkpointing.strategies.common import TorchCommonSaveStrategy  # noqa: E402
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync  # noqa: E402
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy  # noqa: E402


@dataclass
class Part:
    """An engine of a save; `folder` is where its tensors go, within the checkpoint. errors: of files that one rank writes for all."""

    folder: str
    request: Any
    results: Any
    errors: list[Exception]

    def complete(self) -> None:
        """Write the table of what all ranks wrote; look at `errors` then. Collective."""
        filesystem_async._results_queue = self.results
        with _kept(self.errors, (FileSystemWriterAsync, "finish"), (serialization, "save_config")):
            for finalize in self.request.finalize_fns:
                finalize()


@contextlib.contextmanager
def _kept(errors: list[Exception], *calls: tuple[Any, str]) -> Iterator[None]:
    """Keep in `errors` what these functions of the library raise within the block.

    Its first rank alone calls them, between collectives in which the others would wait for ever.
    """

    def keeping(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return function(*arguments, **named)
            except Exception as error:
                errors.append(error)

        return call

    with contextlib.ExitStack() as stack:
        for owner, name in calls:
            before = getattr(owner, name)
            setattr(owner, name, keeping(before))
            stack.callback(setattr, owner, name, before)
        yield


def plan_part(engine: Engine, checkpoint: Path, folder: str) -> Part:
    """Copy what this rank is to write, into `folder` of a checkpoint. Collective over the engine's ranks."""
    # the library hands results back through a manager process that takes seconds to start; our writer is a thread
    filesystem_async._results_queue = queue.Queue()
    errors: list[Exception] = []
    with _kept(errors, (TorchCommonSaveStrategy, "save_common")):
        request = dist_checkpointing.save(
            engine.state(),
            str(checkpoint / folder),
            TorchDistSaveShardedStrategy("torch_dist", 1, thread_count=1),
            async_sharded_save=True,
        )
    return Part(folder, request, filesystem_async._results_queue, errors)


def write_part(part: Part, digests: dict[str, str]) -> None:
    """Write this rank's tensors, with the SHA-256 of each file into `digests`; makes no collective call."""
    if part.request.async_fn is None:
        return  # nothing of it is this rank's to write
    # the tensors are on the CPU already: the library's copy from the device is asynchronous and, in a thread, would
    # wait for the wrong one
    (_, buckets, _), transforms = part.request.async_fn_args, part.request.async_fn.args[0]
    written = {}
    for number, bucket in enumerate(buckets):
        results: queue.Queue[Any] = queue.Queue()
        busy: queue.Queue[int] = queue.Queue()
        busy.put(number)
        FileSystemWriterAsync.write_preloaded_data(transforms, number, bucket, results, busy, use_fsync=True)
        written[number] = results.get()[1]
        if isinstance(written[number], Exception):
            raise written[number]
        progress.beat()
        digests[f"{part.folder}/{bucket[1]}"] = sha256_of(Path(bucket[0]))
    part.results.put(written)
