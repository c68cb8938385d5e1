"""Parameters by our own names, and patterns of such names, as the configuration gives them."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from torch import Tensor, nn

from megalm.config.suggest import nearest
from megalm.errors import UserError
from megalm.model.init import canonical_name, shards_in
from megalm.parallel.layout import Layout

_LAYER = re.compile(r"\.layers\.(\d+)\.")
_NUMBER = re.compile(r"\.\d+\.")
_EMBEDDING = "embedding."


def parameter_names(chunks: Iterable[Any], layout: Layout) -> dict[nn.Parameter, str]:
    """All that this process holds, with our names of them (`canonical_name`): layers are counted over the whole model.

    Both copies of a matrix that embedding and output layer share have the same name. Not for models whose weights are
    parted already (ZeRO-3).
    """
    names = {}
    for chunk in chunks:
        parameters = {_memory(parameter): parameter for parameter in chunk.parameters()}
        for value in nested_values(chunk.sharded_state_dict(metadata={"dp_cp_group": layout.groups.dp_cp})):
            shard = next(shards_in({"shard": value}), None)
            if shard is not None:
                names[parameters[_memory(value.data)]] = canonical_name(shard)
    return names


def _memory(tensor: Tensor) -> int:
    """What tells tensors apart that have no memory, too."""
    return tensor.untyped_storage()._cdata


def gather_names(names: Iterable[str], layout: Layout) -> list[str]:
    """The names of all ranks, sorted. Collective; of a rehearsal without memory those of this rank."""
    mine = list(names)
    parts = [mine]
    if not layout.without_memory:
        parts = [[] for _ in range(layout.world_size)]
        dist.all_gather_object(parts, mine)
    return sorted({name for part in parts for name in part})


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns fits the whole name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_patterns(field: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    """Raise UserError for a pattern of `field` that fits none of the names."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            kinds = sorted({_NUMBER.sub(".N.", name) for name in names})
            raise UserError(
                f"{field}: {pattern!r} fits no parameter{nearest(pattern, names)} (known: {', '.join(kinds)})"
            )


def depth(name: str, num_layers: int) -> int:
    """0 for embeddings, 1 ... num_layers for layers, num_layers + 1 for what follows: final norm and heads."""
    if name.startswith(_EMBEDDING):
        return 0
    layer = _LAYER.search(name)
    return int(layer.group(1)) + 1 if layer else num_layers + 1
