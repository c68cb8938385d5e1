"""What an engine is, and what a task gives it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from megalm.model.state import ForwardState
from megalm.parallel.layout import Layout


@dataclass
class MicroBatch:
    """Samples of one forward pass on one data-parallel rank, on its device.

    tokens_BS, labels_BS: int64. loss_mask_BS: weight of each label, float32. positions_BS and segments_BS: see ForwardState.
    """

    tokens_BS: Tensor
    labels_BS: Tensor
    loss_mask_BS: Tensor
    positions_BS: Tensor | None = None
    segments_BS: Tensor | None = None

    def forward_state(self) -> ForwardState:
        """Positions and documents, as the model wants them."""
        return ForwardState(positions_BS=self.positions_BS, segments_BS=self.segments_BS)


class Loss(Protocol):
    """What a task minimises: sum / weight, both over the whole global batch."""

    def weight(self, microbatch: MicroBatch) -> Tensor:
        """The microbatch's share of the divisor, a scalar known before the forward pass."""

    def forward(self, model: nn.Module, microbatch: MicroBatch) -> Tensor:
        """Run the model's stage."""

    def sum(self, output: Tensor, microbatch: MicroBatch) -> Tensor:
        """Turn the last stage's output into the summed loss, a scalar."""


@dataclass
class Metrics:
    """What one step did; the same on every rank."""

    loss: float
    grad_norm: float
    weight: float
    skipped: bool
    extra: dict[str, float] = field(default_factory=dict)


class Engine(Protocol):
    """Runs steps of one model under one layout."""

    layout: Layout
    model: Any

    def step(self, microbatches: Sequence[MicroBatch], loss: Loss, lr: float) -> Metrics:
        """Forward, backward, reduce, clip, update; a non-finite loss or gradient skips the update."""

    def forward(
        self, microbatches: Sequence[MicroBatch], run: Callable[[nn.Module, MicroBatch], Tensor],
        collect: Callable[[Tensor, MicroBatch], Any],
    ) -> list[Any]:
        """Without gradients: what `collect` makes of each output on the last stage; [] on other stages."""

    def state(self) -> dict[str, Any]:
        """Sharded tensors of weights and optimizer, per parameter in the weight's own shape."""

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` describes, after it was read from a checkpoint."""


def to_microbatches(arrays: Any, layout: Layout, micro_batch_size: int) -> list[MicroBatch]:
    """Split a global batch of numpy arrays (dataset.Batch) into this data-parallel rank's microbatches.

    Microbatch m of rank r holds samples (m x DP + r) x micro_batch_size and following, so that every rank holds the
    same number and any layout sees the same set.
    """
    samples = arrays.tokens_BS.shape[0]
    firsts = range(layout.dp_rank * micro_batch_size, samples, layout.dp_size * micro_batch_size)

    def part(array: Any, first: int) -> Tensor | None:
        if array is None:
            return None
        return torch.from_numpy(array[first : first + micro_batch_size]).to(layout.device, non_blocking=True)

    def microbatch(first: int) -> MicroBatch:
        # without document resets positions are 0 ... S-1 in every row: the model's fast path
        reset = arrays.segments_BS is not None
        return MicroBatch(
            *(part(array, first) for array in (arrays.tokens_BS, arrays.labels_BS, arrays.loss_mask_BS)),  # type: ignore[arg-type]
            positions_BS=part(arrays.positions_BS, first) if reset else None,
            segments_BS=part(arrays.segments_BS, first),
        )

    return [microbatch(first) for first in firsts]


