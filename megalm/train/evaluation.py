"""What a validation measures of held-out samples: the loss, and what the task counts beside it."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from megalm.engine.base import Engine, Loss, MicroBatch, minimised
from megalm.train.tally import Tally, WithTally
from megalm.train.tasks import Preparation


class Evaluation:
    """Measures the model in `engine` by a task's loss and tally (see `train.tasks.Task`)."""

    def __init__(
        self, engine: Engine, loss: Loss, tally: Tally | None = None, prepare: Preparation | None = None
    ) -> None:
        self._engine, self._prepare = engine, prepare
        self._loss = loss if tally is None else WithTally(loss, tally)
        self._parts, self._figures = minimised(loss), loss.figures

    def measure(
        self, batches: Iterable[Sequence[MicroBatch]]
    ) -> tuple[dict[str, float], NDArray[np.float64] | None]:
        """Figures over all of `batches`, this rank's part of a global batch each, the same on every rank; and the tally.

        `loss` and the loss's figures, and of tasks that predict tokens, which have no figures and tally
        nothing, `perplexity`. Collective.
        """
        total, weight = np.sum([self._sums(microbatches) for microbatches in batches], axis=0)
        known = self._parts + len(self._figures)
        numbers = (total[:known] / np.maximum(weight[:known], 1e-30)).tolist()
        values = {"loss": sum(numbers[: self._parts])}
        values |= zip(self._figures, numbers[self._parts :], strict=True)
        if len(total) > known:
            return values, total[known:]
        if self._figures:
            return values, None
        return values | {"perplexity": math.exp(min(numbers[0], 700.0))}, None

    def _sums(self, microbatches: Sequence[MicroBatch]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if self._prepare:
            self._prepare(microbatches, training=False)
        return self._engine.evaluate(microbatches, self._loss)
