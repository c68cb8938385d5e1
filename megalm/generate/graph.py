"""Steps that add a token to each text, recorded once as CUDA graphs and played back: without Python between the kernels."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from megalm.generate.cache import SlotCache
from megalm.generate.forward import Network
from megalm.generate.lean import Pass
from megalm.model.activation import FusedMLP

Capture: TypeAlias = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]

LENGTHS = 256
"""Recorded lengths are multiples of this, so that one recording serves as many steps."""


class GraphSteps:
    """Recordings of `network`'s passes over growing texts alone, for some numbers of rows and lengths of keys.

    A pass is filled up with rows that nobody reads; they write into slots behind those in use. `capture` makes of a
    function over fixed tensors one that repeats its kernels on them.
    """

    def __init__(self, network: Network, capture: Capture) -> None:
        self._network, self._capture = network, capture
        self._recorded: dict[tuple[int, int], tuple[Tensor, Callable[[], Tensor]]] = {}
        self._version = 0
        """Of the cache whose memory the passes were recorded over."""

    @staticmethod
    def can_record(network: Network) -> bool:
        """Whether a pass is the same kernels each time: experts get other numbers of tokens, stages wait for each other."""
        layers = [layer for chunk in network.chunks for layer in chunk.chunk.decoder.layers]
        return network.layout.pp_size == 1 and all(isinstance(layer.mlp, FusedMLP) for layer in layers)

    def run(self, pass_: Pass, cache: SlotCache) -> Tensor | None:
        """Logits (grown, V) of a pass without prompts; None where it does not fit into what is recorded."""
        rows = min(1 << (pass_.grown - 1).bit_length(), cache.slots)
        length = min(-(-pass_.length // LENGTHS) * LENGTHS, cache.length)
        if pass_.parts or rows < pass_.grown:
            return None
        # not by the memory's address: it may come back, of another shape, and ranks that record must do so together
        if self._version != cache.version:
            self._recorded.clear()
            self._version = cache.version
        if (rows, length) not in self._recorded:
            self._recorded[rows, length] = self._record(rows, length, cache)
        inputs_3B, replay = self._recorded[rows, length]
        for target, values in zip(inputs_3B, (pass_.tokens_T, pass_.positions_T, pass_.cells_T), strict=True):
            target[: pass_.grown] = values
        inputs_3B[:2, pass_.grown :] = 0
        inputs_3B[2, pass_.grown :] = self._last_cells(rows, cache)[pass_.grown :]
        return replay()[: pass_.grown]

    def _last_cells(self, rows: int, cache: SlotCache) -> Tensor:
        """Of each slot: a text's last token is never read on from, so that no text has its keys there."""
        return (torch.arange(rows, device=cache.layers[0].device) + 1) * cache.length - 1

    def _record(self, rows: int, length: int, cache: SlotCache) -> tuple[Tensor, Callable[[], Tensor]]:
        inputs_3B = torch.zeros(3, rows, dtype=torch.int64, device=cache.layers[0].device)
        inputs_3B[2] = self._last_cells(rows, cache)  # recording computes, too

        def step() -> Tensor:
            pass_ = Pass(inputs_3B[0], inputs_3B[1], rows, length, True, [], inputs_3B[2])
            logits = self._network.run(pass_, cache, None)
            assert logits is not None
            return logits

        return inputs_3B, self._capture(step)


def cuda_capture(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Record the kernels of `step` on CUDA."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries set themselves up at their first use
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = step()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay
