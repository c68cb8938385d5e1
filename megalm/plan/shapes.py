"""Runs operators on tensors without memory, those that only make new tensors once for each set of shapes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megalm.plan.device import META


@dataclass(frozen=True)
class _Shape:
    """A tensor's outside."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def make(self) -> Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=META)


@dataclass
class _Traits:
    """What the schema of an operator says: does it take a device, and are its outputs new tensors and its inputs left alone."""

    takes_device: bool
    only_makes: bool


class Shapes:
    """Layers repeat: most calls have been seen before, and torch takes long over the shapes of an output."""

    def __init__(self) -> None:
        self._traits: dict[Any, _Traits] = {}
        self._seen: dict[Any, Any] = {}

    def run(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Call `function` so that what it makes has no memory."""
        traits = self._traits.get(function) or self._learn(function)
        if traits.takes_device and (kwargs.get("device") is not None or not tensors_in(args)):
            kwargs |= {"device": META, "pin_memory": None}
        if not traits.only_makes:
            return function(*args, **kwargs)
        key = (function, _outside(args), _outside(tuple(kwargs.items())))
        try:
            seen = self._seen.get(key)
        except TypeError:  # something that does not hash
            return function(*args, **kwargs)
        if seen is None:
            output = function(*args, **kwargs)
            if _share_storage(tensors_in(args), tensors_in((output,))):  # some views do not say so
                traits.only_makes = False
            else:
                self._seen[key] = _outside(output)
            return output
        return seen.make() if isinstance(seen, _Shape) else _make_all(seen)

    def _learn(self, function: Any) -> _Traits:
        schema = function._schema
        names = {argument.name for argument in schema.arguments}
        fresh = not schema.is_mutable and all(
            result.alias_info is None and "Tensor" in str(result.type) for result in schema.returns
        )
        self._traits[function] = _Traits({"device", "pin_memory"} <= names, fresh)
        return self._traits[function]


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """All tensors in nested tuples and lists."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += tensors_in(value)
    return found


def _share_storage(some: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    storages = {tensor.untyped_storage()._cdata for tensor in some}
    return any(tensor.untyped_storage()._cdata in storages for tensor in others)


def _outside(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Shape(tuple(value.shape), value.stride(), value.dtype)
    return tuple(_outside(item) for item in value) if isinstance(value, tuple | list) else value


def _make_all(seen: Any) -> Any:
    if isinstance(seen, _Shape):
        return seen.make()
    return tuple(_make_all(item) for item in seen) if isinstance(seen, tuple) else seen
