"""How many tokens' keys and values a rank has room for."""

import psutil
import torch
import torch.distributed as dist

from megalm.errors import UserError
from megalm.generate.forward import Network

FREE_SHARE = 0.5


def cache_tokens(network: Network, limit: int | None) -> int:
    """Tokens whose keys and values fit into `limit` bytes of a rank, by default half of the free memory.

    The same on all ranks of a copy of the model, whatever layers they hold. Collective over them.
    """
    layout = network.layout
    if limit is None:
        free = (
            torch.cuda.mem_get_info()[0]
            if layout.device.type == "cuda"
            else psutil.virtual_memory().available
        )
        limit = int(free * FREE_SHARE) // (1 if layout.device.type == "cuda" else layout.world_size)
    tokens = torch.tensor(limit // max(network.token_bytes, 1), device=layout.device)
    if layout.tp_size * layout.pp_size > 1:
        dist.all_reduce(tokens, dist.ReduceOp.MIN, group=layout.groups.mp)
    if not tokens:
        raise UserError(
            f"{limit} bytes for keys and values hold no token of {network.token_bytes}: allow more (cache_gib)"
        )
    return int(tokens)
