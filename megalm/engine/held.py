"""An engine's weights as boxes of full tensors, by our own names: what passing them between layouts goes by."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from torch import Tensor

from megalm.engine.base import Engine
from megalm.errors import UserError
from megalm.model.init import canonical_name, shards_in
from megalm.model.lora import linear_layers


class Box(NamedTuple):
    """A part of a full tensor: where it begins on each axis, and how long it is there."""

    start: tuple[int, ...]
    size: tuple[int, ...]

    def intersect(self, other: "Box") -> "Box | None":
        """What both have, None where that is nothing."""
        start = tuple(map(max, self.start, other.start))
        stop = tuple(min(a + n, b + m) for a, n, b, m in zip(*self, *other, strict=True))
        size = tuple(end - begin for begin, end in zip(start, stop, strict=True))
        return Box(start, size) if all(length > 0 for length in size) else None

    def within(self, outer: "Box") -> tuple[slice, ...]:
        """The slices that cut this box out of a tensor that holds `outer`."""
        begins = [a - b for a, b in zip(self.start, outer.start, strict=True)]
        return tuple(slice(begin, begin + length) for begin, length in zip(begins, self.size, strict=True))


@dataclass(frozen=True)
class Held:
    """A box of the full tensor `name` of shape `shape`, and the memory of this process that holds it.

    The memory is a part of a parameter (gated matrices are two full tensors), found anew each time, for a parameter may move.
    """

    name: str
    shape: tuple[int, ...]
    box: Box
    parameter: Tensor
    stride: tuple[int, ...]
    offset: int

    def of(self, whole: Tensor) -> Tensor:
        """The box in a tensor that lies as the parameter does."""
        return whole.as_strided(self.box.size, self.stride, whole.storage_offset() + self.offset)

    def describe(self) -> list[Any]:
        """What other processes need to know, for JSON."""
        return [self.name, self.shape, self.box.start, self.box.size, str(self.parameter.dtype)]


def held_by(engine: Engine) -> list[Held]:
    """All weights of this rank's part of a model, padding of the vocabulary left out. UserError for those with no place."""
    layout = engine.layout
    layout.activate()
    if engine.model.config.weight_form is not None or layout.config.zero_stage == 3:
        what = "quantised" if layout.config.zero_stage < 3 else "parted by ZeRO-3"
        raise UserError(f"weights that are {what} cannot be passed to another layout: use whole ones")
    found = []
    for chunk in engine.chunks:
        known = {
            tensor.data_ptr(): tensor
            for tensor in chunk.state_dict(keep_vars=True).values()
            if _is_held(tensor)
        }
        for value in nested_values(chunk.sharded_state_dict(metadata={"dp_cp_group": layout.groups.dp_cp})):
            for shard in shards_in({"shard": value}):
                found.append(_held(shard, known[value.data.data_ptr()], engine.model.real_vocab_size))
    return [held for held in found if all(held.box.size)]


def _is_held(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() > 0


def _held(shard: Any, parameter: Tensor, vocabulary: int) -> Held:
    lead = shard.prepend_axis_num
    shape, start = list(shard.global_shape[lead:]), tuple(shard.global_offset[lead:])
    data = shard.data.view(shard.data.shape[-len(shape) :])
    size = list(data.shape)
    if shard.allow_shape_mismatch:  # padded to suit the tensor-parallel ranks
        shape[0] = min(shape[0], vocabulary)
        size[0] = max(0, min(size[0], shape[0] - start[0]))
    offset = data.storage_offset() - parameter.storage_offset()
    return Held(
        canonical_name(shard), tuple(shape), Box(start, tuple(size)), parameter, tuple(data.stride()), offset
    )


class Reader:
    """Reads weights as they are, or with the adapters beside them added: W + scale B A, summed in fp32 at least.

    Tensor-parallel ranks hold the parts of A and B that belong to their part of W. One sum is kept at a time.
    """

    def __init__(self, engine: Engine, merged: bool) -> None:
        layers: Iterator[Any] = (layer for chunk in engine.chunks for _, layer in linear_layers(chunk))
        self.adapted = {id(layer.weight): layer for layer in layers if merged and layer.lora is not None}
        self._last: tuple[int, Tensor] | None = None

    def read(self, held: Held) -> Tensor:
        """The weights in the box; not to be changed."""
        layer = self.adapted.get(id(held.parameter))
        if layer is None:
            return held.of(held.parameter.detach())
        if self._last is None or self._last[0] != id(held.parameter):
            weight, lora = held.parameter.detach(), layer.lora
            wide = weight if weight.itemsize > 4 else weight.float()
            whole = wide.addmm(
                lora.b.detach().to(wide.dtype), lora.a.detach().to(wide.dtype), alpha=lora.scale
            )
            self._last = id(held.parameter), whole.to(weight.dtype)
        return held.of(self._last[1])

    def forget(self) -> None:
        """Free what was kept."""
        self._last = None


def dtype_of(text: str) -> torch.dtype:
    """The format that `Held.describe` wrote."""
    return getattr(torch, text.removeprefix("torch."))
