"""Texts in batches of like lengths, shared out over the copies of a model."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch.distributed as dist
from torch import Tensor, nn

from megalm.dataset.framing import NO_CLASS, Int64
from megalm.engine.base import Engine, MicroBatch, split_samples

T = TypeVar("T")


class Rows(Protocol):
    """How documents become rows, e.g. `dataset.framing.Framing`."""

    def frame(self, segments: Sequence[Int64]) -> Sequence[Int64]:
        """The tokens of a document's parts, as they are put one behind the other."""

    def rows(self, documents: Sequence[Sequence[Int64]], classes: Sequence[int], width: int) -> Any:
        """Framed documents as a batch of numpy arrays, a row of `width` tokens or less each."""


def in_batches(
    engine: Engine,
    framing: Rows,
    documents: Sequence[Sequence[Int64]],
    batch_size: int,
    run: Callable[[nn.Module, MicroBatch], Tensor],
    collect: Callable[[Tensor, MicroBatch], Sequence[T]],
) -> list[T]:
    """What `collect` makes of the output for each document (a text's ids, or both of a pair), in their order, on every rank.

    run, collect: see `Engine.forward`; `collect` gives an item for each row. Collective.
    """
    layout = engine.layout
    framed = [framing.frame(document) for document in documents]
    lengths = [sum(map(len, parts)) for parts in framed]
    order = sorted(range(len(framed)), key=lengths.__getitem__)  # like lengths together: little padding
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    mine: list[tuple[int, T]] = []
    for batch in batches[layout.dp_rank :: layout.dp_size]:
        rows = framing.rows([framed[i] for i in batch], [NO_CLASS] * len(batch), lengths[batch[-1]])
        for items in engine.forward(split_samples(rows, layout, len(batch)), run, collect):
            mine += zip(batch, items, strict=True)
    if layout.tp_rank:
        mine = []
    parts: list[list[tuple[int, T]]] = [[] for _ in range(layout.world_size)]
    dist.all_gather_object(parts, mine)
    found = dict(pair for part in parts for pair in part)
    return [found[number] for number in range(len(documents))]
