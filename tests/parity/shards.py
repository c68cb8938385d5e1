"""Full tensors from the shards that ranks hold, so that layouts can be compared."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megalm.model.init import ShardedTensor, ShardedTensorFactory, canonical_name, nested_values


@dataclass
class Piece:
    """A rank's part of a full tensor; it begins at `offset`."""

    name: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    data: Tensor


def pieces_of(shards: Iterable[ShardedTensor]) -> list[Piece]:
    """The shards in a form that can be sent to the test's process, but those of quantised weights, which have no memory."""
    pieces = []
    for shard in shards:
        if shard.data.is_meta:
            continue
        lead = shard.prepend_axis_num
        shape, offset = tuple(shard.global_shape[lead:]), tuple(shard.global_offset[lead:])
        data = shard.data.detach().clone().reshape(shard.data.shape[-len(shape) :])
        pieces.append(Piece(canonical_name(shard), shape, offset, data))
    return pieces


def pieces_of_state(state: dict[str, Any], prefix: str) -> list[Piece]:
    """Pieces of the entries of an engine's state whose names begin with `prefix`, gated matrices in halves."""
    shards: list[ShardedTensor] = []
    for name, value in state.items():
        if name.startswith(prefix):
            parts = nested_values(value.build()) if isinstance(value, ShardedTensorFactory) else [value]
            shards.extend(parts)
    return pieces_of(shards)


def assemble(pieces_of_ranks: Iterable[list[Piece]]) -> dict[str, Tensor]:
    """Full tensors by name. Parts that several ranks hold must be equal bit for bit, and no element may be missing."""
    full: dict[str, Tensor] = {}
    filled: dict[str, Tensor] = {}
    for piece in (piece for pieces in pieces_of_ranks for piece in pieces):
        if piece.name not in full:
            full[piece.name] = torch.zeros(piece.shape, dtype=piece.data.dtype)
            filled[piece.name] = torch.zeros(piece.shape, dtype=torch.bool)
        place = tuple(slice(o, o + n) for o, n in zip(piece.offset, piece.data.shape, strict=True))
        known = filled[piece.name][place]
        assert torch.equal(full[piece.name][place][known], piece.data[known]), (
            f"copies of {piece.name} differ"
        )
        full[piece.name][place] = piece.data
        known.fill_(True)
    for name, mask in filled.items():
        assert mask.all(), f"{name}: {(~mask).sum()} elements on no rank"
    return full
