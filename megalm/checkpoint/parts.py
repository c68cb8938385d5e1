"""The tensors of one engine on their way into a checkpoint: planned by all its ranks, written by each, completed by all."""

import queue
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megalm.engine.base import Engine
from megalm.hashes import sha256_of
from megalm.parallel import cpu

cpu.install()

from megatron.core import dist_checkpointing  # noqa: E402
from megatron.core.dist_checkpointing.strategies import filesystem_async  # noqa: E402
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync  # noqa: E402
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy  # noqa: E402


@dataclass
class Part:
    """An engine of a save; `folder` is where its tensors go, within the checkpoint."""

    folder: str
    request: Any
    results: Any

    def complete(self) -> None:
        """Write the table of what all ranks wrote. Collective."""
        filesystem_async._results_queue = self.results
        for finalize in self.request.finalize_fns:
            finalize()


def plan_part(engine: Engine, checkpoint: Path, folder: str) -> Part:
    """Copy what this rank is to write, into `folder` of a checkpoint. Collective over the engine's ranks."""
    # the library hands results back through a manager process that takes seconds to start; our writer is a thread
    filesystem_async._results_queue = queue.Queue()
    request = dist_checkpointing.save(
        engine.state(),
        str(checkpoint / folder),
        TorchDistSaveShardedStrategy("torch_dist", 1, thread_count=1),
        async_sharded_save=True,
    )
    return Part(folder, request, filesystem_async._results_queue)


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
        digests[f"{part.folder}/{bucket[1]}"] = sha256_of(Path(bucket[0]))
    part.results.put(written)
