"""Lets the weights of a model that is not trained rest in the host's memory between its uses."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from megalm.engine.base import Engine


class Resting:
    """A frozen engine's weights: on its device while it computes, else in pinned memory of the host.

    The copy there is kept, so that a model whose weights have not changed since is put to rest by freeing alone. On a CPU the
    weights stay where they are. What holds addresses of weights, such as recorded CUDA graphs, must be made anew.
    """

    def __init__(self, engine: Engine) -> None:
        """engine: one without an optimizer, awake; ValueError for one that is trained."""
        if getattr(engine, "optimizer_state", None) is not None:
            raise ValueError(
                "an engine that is trained cannot rest: its optimizer and buffers hold its weights"
            )
        self.device = engine.layout.device
        self._tensors = {
            id(tensor): tensor
            for chunk in engine.chunks
            for tensor in [*chunk.parameters(), *chunk.buffers()]
            if tensor.device.type != "cpu"
        }
        self._copies: dict[int, tuple[Tensor, int]] = {}
        self.is_awake = True

    @torch.no_grad()
    def offload(self) -> None:
        """Free the device's memory."""
        if not self.is_awake:
            return
        for key, tensor in self._tensors.items():
            copy, version = self._copies.get(key, (None, -1))
            if copy is None:
                copy = torch.empty_like(tensor, device="cpu", pin_memory=True)
            if version != tensor._version:
                copy.copy_(tensor, non_blocking=True)
            self._copies[key] = copy, tensor._version
        self._wait()
        for key, tensor in self._tensors.items():
            tensor.data = self._copies[key][0]
        self.is_awake = False

    @torch.no_grad()
    def onload(self) -> None:
        """Bring the weights back to the device."""
        if self.is_awake:
            return
        for key, tensor in self._tensors.items():
            copy, _ = self._copies[key]
            tensor.data = copy.to(self.device, non_blocking=True)
            self._copies[key] = copy, tensor._version
        self._wait()
        self.is_awake = True

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Within it the weights are on the device; afterwards they rest."""
        self.onload()
        try:
            yield
        finally:
            self.offload()

    def _wait(self) -> None:
        if self._tensors:
            torch.cuda.synchronize(self.device)
