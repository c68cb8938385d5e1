"""A process that is a world by itself, without a layout."""

import contextlib
from collections.abc import Iterator

import torch.distributed as dist


@contextlib.contextmanager
def world_of_one() -> Iterator[None]:
    """Within it torch.distributed has this process alone, over gloo and without a port.

    Where a layout of this process has made such a world, that one is used and stays. RuntimeError in a world of several.
    """
    if dist.is_initialized():
        if dist.get_world_size() > 1:
            raise RuntimeError(f"this process is one of {dist.get_world_size()}, not alone")
        yield
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
