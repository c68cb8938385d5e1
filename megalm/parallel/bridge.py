"""A process group over several worlds, for roles that run on disjoint ranks and pass each other weights and samples."""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


def bridge(store: dist.Store, rank: int, size: int, timeout: timedelta, device: torch.device) -> Any:
    """Join `size` processes of any worlds as their number `rank`. Collective over these.

    store: one that all of them reach, such as `dist.TCPStore(host, port)`. The group belongs to no world: it is not known to
    torch.distributed's own functions, which take the world's ranks, and its methods take ranks of its own.
    """
    prefixed = dist.PrefixStore("bridge", store)
    if device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        return dist.ProcessGroupNCCL(prefixed, rank, size, options)
    return dist.ProcessGroupGloo(prefixed, rank, size, timeout)
