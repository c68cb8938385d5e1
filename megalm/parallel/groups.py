"""Process groups of equal ranks made once: on gloo each group costs a thread that wakes a hundred times a second."""

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import torch.distributed as dist
from megatron.core import parallel_state

_made: WeakKeyDictionary[dist.ProcessGroup, dict[tuple[Any, ...], Any]] = WeakKeyDictionary()
"""Of each default group, gone with it: groups by their ranks and what else tells them apart."""


@contextlib.contextmanager
def shared_groups(timeout: timedelta) -> Iterator[None]:
    """Let Megatron-Core make groups with this timeout, on gloo one for each set of ranks, also over several layouts.

    Collectives of one group follow each other in the order of their calls, which is the same on all its ranks. On NCCL every axis
    keeps a communicator of its own, so that gradients are summed beside what the model sends.
    """
    make = parallel_state.create_group

    def create_group(ranks: list[int], **options: Any) -> Any:
        options["timeout"] = timeout
        if dist.get_backend() != "gloo":
            return make(ranks, **options)
        world = dist.group.WORLD
        assert world is not None
        made = _made.setdefault(world, {})
        key = (*ranks, timeout)
        if key not in made:
            made[key] = make(ranks, **options)
        return made[key]

    parallel_state.create_group = create_group
    try:
        yield
    finally:
        parallel_state.create_group = make


def destroy_groups() -> None:
    """Destroy all of this process's groups but the world's; layouts made before are of no use any more."""
    if parallel_state.is_initialized():
        parallel_state.destroy_model_parallel()
    for group in list(dist.distributed_c10d._world.pg_map):
        if group is not dist.group.WORLD:
            dist.destroy_process_group(group)
    _made.clear()
