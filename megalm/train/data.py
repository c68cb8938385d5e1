"""Batches for the loop: this rank's samples of each step, read ahead by a thread."""

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megalm.config.schema import Config, DataSource
from megalm.dataset.cursor import Cursor
from megalm.engine.base import MicroBatch, local_samples, split_samples
from megalm.parallel.layout import Layout
from megalm.tokenizer.base import Tokenizer
from megalm.train.tasks import SampleStream, task_of


def open_stream(config: Config, sources: list[DataSource], tokenizer: Tokenizer | None) -> SampleStream:
    """Open a blend as the task reads it; the token files must have been made with the run's tokenizer."""
    return task_of(config).open_stream(config, sources, tokenizer)


def open_validation(config: Config, sources: list[DataSource], tokenizer: Tokenizer | None) -> SampleStream:
    """Open the blend to validate on."""
    task = task_of(config)
    return (task.open_validation or task.open_stream)(config, sources, tokenizer)


class TrainingData:
    """Microbatches of one step after another, from a cursor that can be saved, moved and rewound."""

    def __init__(self, config: Config, layout: Layout, stream: SampleStream) -> None:
        self.stream = stream
        self.layout = layout
        self.rows = config.batch.micro_batch_size
        self.samples = config.batch.global_batch_size
        self.local = local_samples(self.samples, layout, self.rows)
        self.ahead = config.data.prefetch
        self.cursor = Cursor()
        """Stands at the next step's first sample."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="data") if self.ahead else None
        self._queue: deque[tuple[Cursor, Future[Any]]] = deque()

    def move_to(self, cursor: Cursor) -> None:
        """Go on from another position; what was read ahead is dropped."""
        self.cursor = _copy(cursor)
        self._queue.clear()

    @property
    def next_sample(self) -> int:
        """Number of the next step's first sample."""
        return int(_copy(self.cursor).take(1)[0])

    def next(self) -> list[MicroBatch]:
        """Return this rank's microbatches of the next step and advance the cursor past it."""
        if self._pool is None:
            return self._to_device(self.stream.batch(self.cursor.take(self.samples)[self.local]))
        self._read_ahead(self._pool)
        self.cursor, future = self._queue.popleft()
        return self._to_device(future.result())

    def _read_ahead(self, pool: ThreadPoolExecutor) -> None:
        while len(self._queue) <= self.ahead:
            after = _copy(self._queue[-1][0] if self._queue else self.cursor)
            positions = after.take(self.samples)[self.local]
            self._queue.append((after, pool.submit(self.stream.batch, positions)))

    def _to_device(self, batch: Any) -> list[MicroBatch]:
        return split_samples(batch, self.layout, self.rows)


def _copy(cursor: Cursor) -> Cursor:
    return Cursor(cursor.next_sample, list(cursor.skipped))


class ValidationData:
    """The same samples at every validation: the first of the validation blend, none twice while they last, or all of it."""

    def __init__(self, config: Config, layout: Layout, stream: SampleStream) -> None:
        size, rows = config.batch.global_batch_size, config.batch.micro_batch_size
        samples = stream.samples_before_repeats()
        self.batches = max(1, min(config.train.eval_batches, samples // size))
        if stream.in_full:
            self.batches = math.ceil(samples / size)
        self.stream, self.layout, self.rows, self.size = stream, layout, rows, size
        self.local: NDArray[np.int64] = local_samples(size, layout, rows)

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        for number in range(self.batches):
            batch = self.stream.batch(number * self.size + self.local)
            yield split_samples(batch, self.layout, self.rows)
