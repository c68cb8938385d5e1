"""Looks at each source of the validation blend by itself, so that gains on one do not hide losses on another."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from megalm.config.schema import Config, DataSource
from megalm.parallel.layout import Layout
from megalm.tokenizer import Tokenizer
from megalm.train.callbacks.base import Callback, Run, Validation
from megalm.train.data import ValidationData, open_validation
from megalm.train.evaluation import Evaluation


class SourceLosses(Callback):
    """Adds to a validation its figures of each source, e.g. `loss_NAME`, over as many batches as that has itself.

    Comes before the callbacks that write a validation down.
    """

    def __init__(self, evaluation: Evaluation, sources: Mapping[str, ValidationData]) -> None:
        self._evaluation, self._sources = evaluation, sources

    def on_validation(self, run: Run, validation: Validation) -> None:
        for name, batches in self._sources.items():
            values, _ = self._evaluation.measure(batches)
            validation.values |= {f"{figure}_{name}": value for figure, value in values.items()}


def source_losses(
    config: Config, layout: Layout, tokenizer: Tokenizer | None, evaluation: Evaluation
) -> list[Callback]:
    """The callback that `train.eval_by_source` asks for."""
    if not config.train.eval_by_source:
        return []
    sources = config.data.valid
    streams = [open_validation(config, [source], tokenizer) for source in sources]
    each = [ValidationData(config, layout, stream) for stream in streams]
    return [SourceLosses(evaluation, dict(zip(source_names(sources), each, strict=True)))]


def source_names(sources: Sequence[DataSource]) -> list[str]:
    """A name for each source: its file's, with the folders before it where that tells it from others."""
    paths = [Path(source.path).parts for source in sources]
    deepest = max((len(parts) for parts in paths), default=1)
    for depth in range(1, deepest + 1):
        names = ["/".join(parts[-depth:]).lstrip("/") for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{name}.{number}" for number, name in enumerate(names)]
