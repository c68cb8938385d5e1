"""Counts the bytes that a forward pass keeps for its backward pass."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def saved_bytes(forward: Callable[[], Any], parameters: Iterable[Tensor]) -> int:
    """Run `forward` with gradients and return the bytes that autograd then holds, without those of `parameters`.

    Memory that several tensors share counts once; what was given back in the meantime, to be computed again, not at all.
    What code keeps behind hooks of its own is not seen.
    """
    storages: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()
    known = {parameter.untyped_storage()._cdata for parameter in parameters}
    total = sum(storage.nbytes() for key, storage in storages.items() if key not in known)
    del result  # alive until here, as until the backward pass
    return total
