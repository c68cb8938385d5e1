"""A world of any size inside one process: groups of the planned size, whose other members only seem to be there."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch.distributed as dist
from megatron.core import num_microbatches_calculator, parallel_state
from megatron.core.tensor_parallel import random as megatron_random
from torch.testing._internal.distributed.fake_pg import FakeStore


@contextlib.contextmanager
def fake_world(rank: int, world_size: int, backend: str) -> Iterator[None]:
    """Be rank `rank` of `world_size` processes for a while; collectives return at once and move nothing.

    backend: what the groups say they talk over. Everything process-global that Megatron-Core and torch.distributed keep is
    taken down at the end. RuntimeError in a process that is part of a real world.
    """
    if dist.is_initialized():
        raise RuntimeError("a process that has joined a world cannot plan another one")
    hook = sys.excepthook  # torch would put the rank before each line of every error from now on
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        with (
            mock.patch.object(dist, "get_backend", lambda *_, **__: backend),
            mock.patch.object(dist, "all_gather_object", _gather_objects),
            mock.patch.object(dist, "broadcast_object_list", _broadcast_objects),
            mock.patch.object(dist, "batch_isend_irecv", _send_and_receive),
        ):
            yield
    finally:
        if parallel_state.is_initialized():
            parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
        sys.excepthook = hook
        num_microbatches_calculator.unset_num_microbatches_calculator()
        megatron_random.get_cuda_rng_tracker().reset()


def _gather_objects(objects: list[Any], mine: Any, group: Any = None) -> None:
    """Every rank is as this one."""
    objects[:] = [mine] * len(objects)


def _broadcast_objects(objects: list[Any], *_: Any, **__: Any) -> None:
    """The sender has what this rank has."""


def _send_and_receive(operations: Sequence[Any]) -> list[Any]:
    """torch's own asks the tensors' device for a backend, which there is none for."""
    return [
        op.op(op.tensor, group=op.group, group_dst=op.group_peer, tag=op.tag)
        if op.op is dist.isend
        else op.op(op.tensor, group=op.group, group_src=op.group_peer, tag=op.tag)
        for op in operations
    ]
