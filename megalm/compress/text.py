"""Text that a model is calibrated or measured on: token files, or documents that the model's tokenizer reads."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from megalm.config import Config
from megalm.config.schema import DataSource
from megalm.dataset.opening import open_text
from megalm.engine.base import MicroBatch, split_samples
from megalm.errors import UserError
from megalm.generate.decode import context_length
from megalm.parallel.layout import Layout
from megalm.tokenizer.base import Tokenizer
from megalm.tokenizer.documents import expand_inputs, read_documents

ROWS = 8
"""Samples of one forward pass."""


class _Samples(Protocol):
    def batch(self, positions: NDArray[np.int64]) -> object:
        """The samples of these numbers, as numpy arrays under the names of MicroBatch's fields."""


class Text:
    """So many samples, the same at each look."""

    def __init__(self, samples: _Samples, count: int) -> None:
        self.samples, self.count = samples, count

    def batches(self, layout: Layout) -> Iterator[list[MicroBatch]]:
        """One microbatch of at most `ROWS` samples after another, as the engine takes them."""
        for first in range(0, self.count, ROWS):
            numbers = np.arange(first, min(first + ROWS, self.count))
            yield split_samples(self.samples.batch(numbers), layout, ROWS)


def open_samples(
    sources: Sequence[str | Path], config: Config, tokenizer: Tokenizer, count: int, length: int | None = None
) -> Text:
    """At most `count` samples of `length` tokens (default: the run's batch.seq_length) of token files or of documents.

    sources: prefixes of token files, read as the model was trained on them (documents apart or not), or JSONL and text files
    and directories of them, whose documents follow each other. UserError where both kinds come together, files are missing or
    of another tokenizer, samples are longer than the model's context, or there is none.
    """
    length = length or config.batch.seq_length
    if length > context_length(config):
        raise UserError(
            f"samples of {length} tokens do not fit into the model's context of {context_length(config)}: lower --length"
        )
    for source in map(Path, sources):
        if source.suffix in (".bin", ".idx"):
            raise UserError(f"{source} is a part of token files: name their prefix, {source.with_suffix('')}")
    are_token_files = [_is_token_file(source) for source in sources]
    if all(are_token_files):
        settings = config.model_copy(deep=True)
        settings.batch.seq_length = length
        stream = open_text(settings, [DataSource(path=str(source)) for source in sources], tokenizer.hash)
        return Text(stream, min(count, stream.samples_before_repeats()))
    if any(are_token_files):
        raise UserError(f"{', '.join(map(str, sources))}: token files and text together; name one kind")
    windows = _Windows(_read(sources, tokenizer, count * length + 1), length)
    return Text(windows, min(count, len(windows.tokens_BS)))


def _is_token_file(source: str | Path) -> bool:
    return Path(f"{source}.idx").is_file()


def _read(sources: Sequence[str | Path], tokenizer: Tokenizer, tokens: int) -> list[int]:
    """The first `tokens` ids of documents one after the other, each with the end-of-document token behind it."""
    ids: list[int] = []
    for path in expand_inputs(sources):
        for document in read_documents(path):
            ids += [*tokenizer.encode(document.text), tokenizer.eod_id]
            if len(ids) >= tokens:
                return ids[:tokens]
    return ids


class _Windows:
    """Running text in windows, each beginning where the last ends."""

    def __init__(self, ids: list[int], length: int) -> None:
        if len(ids) <= length:
            raise UserError(
                f"the text has {len(ids)} tokens, a sample needs {length} and the one after them: give more text, or shorter "
                "samples (--length)"
            )
        whole = np.array(ids, np.int64)
        rows = (len(ids) - 1) // length
        self.tokens_BS = whole[: rows * length].reshape(rows, length)
        self.labels_BS = whole[1 : rows * length + 1].reshape(rows, length)

    def batch(self, positions: NDArray[np.int64]) -> SimpleNamespace:
        tokens_BS, labels_BS = self.tokens_BS[positions], self.labels_BS[positions]
        return SimpleNamespace(
            tokens_BS=tokens_BS, labels_BS=labels_BS, loss_mask_BS=np.ones(tokens_BS.shape, np.float32)
        )
