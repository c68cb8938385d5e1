"""Counts of a validation, summed beside the loss by whatever sums that over microbatches and ranks."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megalm.engine.base import Loss, MicroBatch


@dataclass(frozen=True)
class Tally:
    """What is counted: `size` numbers, float64, of the last stage's output of each microbatch."""

    size: int
    count: Callable[[Tensor, MicroBatch], Tensor]


class WithTally:
    """A loss (see `engine.base.Loss`) whose sums have those of a tally behind them; for validation alone."""

    def __init__(self, loss: Loss, tally: Tally) -> None:
        self.loss, self.tally = loss, tally
        self.parts, self.figures = loss.parts, loss.figures

    def weight(self, microbatch: MicroBatch) -> Tensor:
        """The loss's weights, then zeros: counts are not divided."""
        weights = self.loss.weight(microbatch).reshape(-1).double()
        return torch.cat([weights, weights.new_zeros(self.tally.size)])

    def forward(self, model: nn.Module, microbatch: MicroBatch) -> Tensor:
        """The loss's."""
        return self.loss.forward(model, microbatch)

    def sum(self, output: Tensor, microbatch: MicroBatch) -> Tensor:
        """The loss's sums, then the counts."""
        sums = self.loss.sum(output, microbatch).reshape(-1).double()
        return torch.cat([sums, self.tally.count(output, microbatch)])
