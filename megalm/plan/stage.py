"""One rank's engine on tensors without memory: built, and taken through a training step."""

import contextlib
import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from megalm.config.schema import Config
from megalm.engine.base import MicroBatch
from megalm.engine.build import build_engine
from megalm.parallel.layout import Layout, create_layout
from megalm.plan.device import PretendDevice
from megalm.plan.memory import GRADIENTS, OPTIMIZER, WEIGHTS, MemoryTracker, follow_parts
from megalm.plan.report import StagePlan
from megalm.plan.traffic import Traffic
from megalm.plan.world import fake_world
from megalm.train.pretrain import NextTokenLoss

# a part of the model by the name of a module; the first that matches counts
PARTS = (
    (re.compile(r"norm"), "norms"),
    (re.compile(r"attention"), "attention"),
    (re.compile(r"experts|router"), "experts"),
    (re.compile(r"\bmlp\b"), "MLP"),
    (re.compile(r"embedding"), "embedding"),
    (re.compile(r"\blayers\.\d+$|decoder|encoder"), "residuals"),
)
HEAD = "head and loss"


def plan_stage(config: Config, world_size: int, stages: tuple[int, int], device: torch.device) -> StagePlan:
    """Build the engine of the first of the pipeline `stages` and let it take a step, both without memory.

    The rank is the first of its stage on every other axis: with a vocabulary that TP does not divide it has the
    least padding, so that none computes more.
    """
    rank = stages[0] * world_size // config.parallel.pipeline_model_parallel_size
    with fake_world(rank, world_size):
        layout = create_layout(config.parallel, config.run.seed)
        layout = dataclasses.replace(layout, device=device, without_memory=True)
        traffic = Traffic(layout)
        tracker = MemoryTracker(traffic)
        with PretendDevice(device), tracker:
            engine = build_engine(config, layout)
            parts = _parts_of(engine)
            _label_state(tracker, engine)
            resting = tracker.live.copy()
            follow_parts(tracker, parts)
            count, rehearsed = microbatches_of(config, layout)
            with _batches(config, device, count) as microbatches:
                tracker.relabel("other", "batch")
                tracker.start()
                engine.step(microbatches[:rehearsed], NextTokenLoss(), config.optimizer.lr)
            sent = Counter(traffic.once)
            for axis, size in traffic.each_microbatch.items():
                sent[axis] += size * count // rehearsed
            result = StagePlan(
                layout=layout.describe(),
                stages=stages,
                layers=sum(bool(re.search(r"\blayers\.\d+$", name)) for name, _ in _modules(engine)),
                parameters=_parameters_by_part(engine),
                weights=resting[WEIGHTS],
                gradients=resting[GRADIENTS],
                optimizer=resting[OPTIMIZER],
                resting=sum(resting.values()),
                peak=tracker.peak,
                at_peak={label: size for label, size in sorted(tracker.at_peak.items()) if size},
                sent={axis: size for axis, size in sorted(sent.items()) if size},
            )
            del engine, microbatches, parts
    return result


def microbatches_of(config: Config, layout: Layout) -> tuple[int, int]:
    """(microbatches of a step on a rank, how many of them show its peak): those in flight, and one more to add to gradients."""
    count = config.batch.global_batch_size // (config.batch.micro_batch_size * layout.dp_size)
    return count, min(count, layout.pp_size + 1)


@contextlib.contextmanager
def _batches(config: Config, device: torch.device, count: int) -> Iterator[list[MicroBatch]]:
    """A rank's microbatches of one step, as data of the run would be."""
    shape = (config.batch.micro_batch_size, config.batch.seq_length)

    def ids() -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int64, device=device)

    def microbatch() -> MicroBatch:
        mask = torch.empty(shape, dtype=torch.float32, device=device)
        resets = (ids(), ids()) if config.data.reset_at_document_end else ()
        return MicroBatch(ids(), ids(), mask, *resets)

    yield [microbatch() for _ in range(count)]


def _modules(engine: Any) -> list[tuple[str, nn.Module]]:
    models = engine.model if isinstance(engine.model, list | nn.ModuleList) else [engine.model]
    return [pair for model in models for pair in model.named_modules()]


def _parts_of(engine: Any) -> dict[nn.Module, str]:
    """Modules at which another part of the model begins."""
    return {module: _part(name) for name, module in _modules(engine)}


def _part(name: str) -> str:
    """What is left when everything else has a name is the model itself, which runs the head."""
    return next((part for pattern, part in PARTS if pattern.search(name)), HEAD)


def _parameters_by_part(engine: Any) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name, module in _modules(engine):
        for parameter in module.parameters(recurse=False):
            counts[_part(name)] += parameter.numel()
    return dict(counts)


def _label_state(tracker: MemoryTracker, engine: Any) -> None:
    """Weights and gradients are what parameters name; all else that lives once the engine is built is the optimizer's."""
    parameters = [p for _, module in _modules(engine) for p in module.parameters(recurse=False)]
    tracker.label(parameters, WEIGHTS)
    tracker.label((p.main_grad for p in parameters if hasattr(p, "main_grad")), GRADIENTS)
    tracker.relabel("other", OPTIMIZER)
