"""Looks at each source of the validation blend by itself, so that gains on one do not hide losses on another."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megalm.config.schema import Config, DataSource
from megalm.engine.base import Engine, Loss, MicroBatch
from megalm.tokenizer import Tokenizer
from megalm.train.callbacks.base import Callback, Run, Validation
from megalm.train.data import ValidationData, open_validation
from megalm.train.tasks import Preparation


class SourceLosses(Callback):
    """Adds `loss_NAME` and `perplexity_NAME` of each source to a validation, over as many batches as that has itself.

    Comes before the callbacks that write a validation down.
    """

    def __init__(
        self,
        engine: Engine,
        loss: Loss,
        sources: Mapping[str, ValidationData],
        prepare: Preparation | None = None,
    ) -> None:
        self._engine, self._loss, self._sources, self._prepare = engine, loss, sources, prepare

    def on_validation(self, run: Run, validation: Validation) -> None:
        for name, batches in self._sources.items():
            total, weight = np.sum([self._evaluate(microbatches) for microbatches in batches], axis=0)
            parts = (total / np.maximum(weight, 1e-30)).tolist()
            validation.values[f"loss_{name}"] = sum(parts)
            validation.values[f"perplexity_{name}"] = math.exp(min(parts[0], 700.0))

    def _evaluate(self, microbatches: list[MicroBatch]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if self._prepare:
            self._prepare(microbatches, training=False)
        return self._engine.evaluate(microbatches, self._loss)


def source_losses(
    engine: Engine,
    config: Config,
    tokenizer: Tokenizer | None,
    loss: Loss,
    prepare: Preparation | None = None,
) -> list[Callback]:
    """The callback that `train.eval_by_source` asks for."""
    if not config.train.eval_by_source:
        return []
    sources = config.data.valid
    streams = [open_validation(config, [source], tokenizer) for source in sources]
    each = [ValidationData(config, engine.layout, stream) for stream in streams]
    return [SourceLosses(engine, loss, dict(zip(source_names(sources), each, strict=True)), prepare)]


def source_names(sources: Sequence[DataSource]) -> list[str]:
    """A name for each source: its file's, with the folders before it where that tells it from others."""
    paths = [Path(source.path).parts for source in sources]
    deepest = max((len(parts) for parts in paths), default=1)
    for depth in range(1, deepest + 1):
        names = ["/".join(parts[-depth:]).lstrip("/") for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{name}.{number}" for number, name in enumerate(names)]
