"""Keeps account of the bytes that tensors hold: live, at most, and what they were made for."""

import weakref
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from megalm.plan.shapes import Shapes, tensors_in
from megalm.plan.traffic import Traffic
from megalm.plan.values import Values

WEIGHTS, GRADIENTS, OPTIMIZER = LASTING = ("weights", "gradients", "optimizer")


class MemoryTracker(TorchDispatchMode):
    """While active every tensor is made without memory, and its storage counts under a label until it is gone.

    Labels: what `label` names, and during a step `activations.PART` for what the forward pass of that part of the
    model makes (again, under recompute), `backward` for what the backward pass makes, else `other`.
    """

    def __init__(self, traffic: Traffic, values: Values) -> None:
        super().__init__()
        self.traffic = traffic
        self.values = values
        self.shapes = Shapes()
        self.parts: list[str] = []
        self.live: Counter[str] = Counter()
        self.peak = 0
        self.at_peak: dict[str, int] = {}
        self._total = 0
        self._storages: dict[int, tuple[weakref.ref[Any], int, str]] = {}

    def label(self, tensors: Iterable[Tensor], label: str) -> None:
        """Count the storages of these tensors under `label` from now on."""
        for tensor in tensors:
            self._count(tensor, label, again=True)

    def relabel(self, old: str, new: str) -> None:
        """Count everything live under `old` as `new`."""
        for key, (reference, size, label) in list(self._storages.items()):
            if label == old:
                self._storages[key] = (reference, size, new)
        self.live[new] += self.live.pop(old, 0)

    def start(self) -> None:
        """Forget the highest mark so far."""
        self.peak, self.at_peak = self._total, dict(self.live)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunction():  # kernels are to see tensors as they are
            return self._dispatch(function, args, dict(kwargs or {}))

    def _dispatch(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if function.namespace == "c10d":
            received = self.traffic.handle(function, args, self._where())
            self.label(received, "communication")
            self.values.gathered(received, args[1])
            return self.traffic.result(function, args)
        if self.values.knows(function):
            return self._made(self.values.run(function, args))
        output = self._made(self.shapes.run(function, args, kwargs))
        self.values.watch(function, args, output)
        return output

    def _where(self) -> str:
        if self.parts:
            return f"activations.{self.parts[-1]}"
        return "backward" if torch._C._current_graph_task_id() != -1 else "other"

    def _made(self, output: Any) -> Any:
        label = self._where()
        for tensor in tensors_in((output,)):
            self._count(tensor, label)
        return output

    def _count(self, tensor: Tensor, label: str, again: bool = False) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            if again and self._storages[key][2] not in LASTING:
                reference, size, old = self._storages[key]
                self._storages[key] = (reference, size, label)
                self.live[old] -= size
                self.live[label] += size
            return
        size = storage.nbytes()
        self._storages[key] = (weakref.ref(storage, lambda _: self._gone(key)), size, label)
        self.live[label] += size
        self._total += size
        if self._total > self.peak:
            self.peak, self.at_peak = self._total, dict(self.live)

    def _gone(self, key: int) -> None:
        _, size, label = self._storages.pop(key)
        self.live[label] -= size
        self._total -= size


def follow_parts(tracker: MemoryTracker, parts: Mapping[nn.Module, str]) -> None:
    """Let the tracker know which part of the model is in its forward pass."""
    for module, part in parts.items():
        module.register_forward_pre_hook(lambda *_, part=part: tracker.parts.append(part))
        module.register_forward_hook(lambda *_: tracker.parts.pop() and None, always_call=True)
