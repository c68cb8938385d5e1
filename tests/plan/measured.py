"""Memory that a real step takes on a rank of a gloo world, measured from outside the engine in two independent ways."""

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from megalm.config import Config
from megalm.engine.base import MicroBatch, split_samples
from megalm.engine.build import build_engine
from megalm.parallel.layout import Layout, create_layout
from megalm.train.tasks import task_of


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of all storages that operators have returned and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: dict[int, Any] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        for value in output if isinstance(output, tuple | list) else (output,):
            if isinstance(value, Tensor) and not value.is_meta:  # a shape alone takes no memory
                self._add(value.untyped_storage())
        return output

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known[key] = weakref.ref(storage, lambda _: self._remove(key, size))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _remove(self, key: int, size: int) -> None:
        del self.known[key]
        self.live -= size


def storages_of_a_step(config: Config) -> tuple[int, int, int]:
    """(pipeline stage, bytes before a step, most during it) on this rank, as its tensors hold them."""
    layout = create_layout(config.parallel)
    with LiveStorages() as storages:
        engine = build_engine(config, layout)
        gc.collect()
        resting = storages.live
        microbatches = _microbatches(config, layout)
        storages.peak = 0
        engine.step(microbatches, task_of(config).make_loss(config), 1e-3)
    return layout.pp_rank, resting, storages.peak


def allocations_of_a_step(config: Config) -> tuple[int, int]:
    """(most bytes during a step, those more after it than before) by the CPU allocator's own account.

    Not for worlds in which gloo's threads free tensors: the profiler does not see those.
    """
    layout = create_layout(config.parallel)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        engine = build_engine(config, layout)
        microbatches = _microbatches(config, layout)
        gc.collect()
        with record_function("the step"):
            engine.step(microbatches, task_of(config).make_loss(config), 1e-3)
    events = sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    begin = next(event.start_ns() for event in events if event.name() == "the step")
    changes = [(event.start_ns() >= begin, event.nbytes()) for event in events if event.name() == "[memory]"]
    before = sum(size for in_step, size in changes if not in_step)
    course = before + np.cumsum([size for in_step, size in changes if in_step])
    return int(course.max()), int(course[-1]) - before


def _microbatches(config: Config, layout: Layout) -> list[MicroBatch]:
    batch = config.batch
    shape = (batch.global_batch_size // layout.dp_size, batch.seq_length)
    random = np.random.default_rng(layout.dp_rank)
    ids_BS = random.integers(0, config.model.vocab_size, shape)
    ones_BS = np.ones(shape, np.int64)
    encoder = config.model.architecture == "bert"
    resets = config.data.documents_apart
    counted = shape[1] * (config.mlm.mask_probability if encoder else 1)
    samples = SimpleNamespace(
        tokens_BS=ids_BS,
        labels_BS=ids_BS,
        loss_mask_BS=np.where(np.arange(shape[1]) < counted, ones_BS, 0).astype(np.float32),
        positions_BS=ones_BS if resets else None,
        segments_BS=ones_BS if resets or encoder else None,
        token_types_BS=ones_BS if encoder else None,
        classes_B=ones_BS[:, 0] if encoder else None,
    )
    return split_samples(samples, layout, batch.micro_batch_size)
