"""One rank's engine on tensors without memory: built, and taken through a training step."""

import contextlib
import dataclasses
import re
import warnings
from collections import Counter
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn

from megalm.config.pipeline import microbatches_of_step
from megalm.config.rlhf import RL_TASKS
from megalm.config.schema import Config
from megalm.engine.base import Engine, MicroBatch, split_samples
from megalm.engine.build import build_engine
from megalm.parallel.layout import Layout, create_layout
from megalm.plan.device import PretendDevice
from megalm.plan.memory import GRADIENTS, OPTIMIZER, WEIGHTS, MemoryTracker, follow_parts
from megalm.plan.report import StagePlan
from megalm.plan.traffic import Traffic
from megalm.plan.values import Values
from megalm.plan.world import fake_world
from megalm.train.frozen import as_frozen
from megalm.train.tasks import task_of

LAYER = re.compile(r"\blayers\.\d+$")
# a part of the model by the name of a module; the first that matches counts
PARTS = (
    (re.compile(r"norm"), "norms"),
    (re.compile(r"attention"), "attention"),
    (re.compile(r"experts|router"), "experts"),
    (re.compile(r"\bmlp\b"), "MLP"),
    (re.compile(r"embedding"), "embedding"),
    (re.compile(r"layers|decoder|encoder"), "residuals"),
)
HEAD = "head and loss"
BATCH = "batch"
REFERENCE = "reference"


def plan_stage(config: Config, world_size: int, stages: tuple[int, int], device: torch.device) -> StagePlan:
    """Build the engine of the first of the pipeline `stages` and let it take a step, both without memory.

    The rank is the first of its stage on every other axis: with a vocabulary that TP does not divide it has the
    least padding, so that none computes more.
    """
    rank = stages[0] * world_size // config.parallel.pipeline_model_parallel_size
    with fake_world(rank, world_size, "gloo" if device.type == "cpu" else "nccl"):
        layout = create_layout(config.parallel, config.run.seed)
        layout = dataclasses.replace(layout, device=device, without_memory=True)
        values = Values(config)
        tracker = MemoryTracker(Traffic(layout), values)
        with PretendDevice(device, values.to_numpy), tracker, warnings.catch_warnings():
            # the library's own access, which `megalm.parallel.cpu` silences where it happens; here it happens in the mode
            warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor that is not a leaf")
            with _agreement(config):
                return _rehearse(config, layout, tracker, stages)


def _agreement(config: Config) -> contextlib.AbstractContextManager[Any]:
    """DeepSpeed's ZeRO-3 compares with the other ranks in which order modules run."""
    if config.engine != "deepspeed" or config.parallel.zero_stage < 3:
        return contextlib.nullcontext()
    name = "deepspeed.runtime.zero.partitioned_param_coordinator.assert_ints_same_as_other_ranks"
    return mock.patch(name, lambda *_: None)


def _rehearse(config: Config, layout: Layout, tracker: MemoryTracker, stages: tuple[int, int]) -> StagePlan:
    engine = build_engine(config, layout)
    _label_state(tracker, engine)
    reference = (
        build_engine(as_frozen(config, config, None), layout, False) if keeps_reference(config) else None
    )
    tracker.relabel("other", REFERENCE)
    resting = tracker.live.copy()
    follow_parts(tracker, {module: _part(name) for name, module in _modules(engine)})
    if config.parallel.zero_stage > 1:
        engine.model.register_forward_pre_hook(lambda *_: tracker.traffic.begin_microbatch())
    count, rehearsed = microbatches_of(config, layout)
    microbatches = _microbatches(config, layout, rehearsed)
    tracker.relabel("other", BATCH)
    tracker.start()
    engine.step(microbatches, task_of(config).make_loss(config), config.optimizer.lr)
    waiting = tracker.at_peak[BATCH] // rehearsed * (count - rehearsed)
    tracker.at_peak[BATCH] += waiting
    del reference  # it was there all the time
    return StagePlan(
        layout=layout.describe(),
        stages=stages,
        layers=sum(bool(LAYER.search(name)) for name, _ in _modules(engine)),
        parameters=_parameters_by_part(engine),
        weights=resting[WEIGHTS],
        gradients=resting[GRADIENTS],
        optimizer=resting[OPTIMIZER],
        resting=sum(resting.values()),
        peak=tracker.peak + waiting,
        at_peak={label: size for label, size in sorted(tracker.at_peak.items()) if size},
        sent=tracker.traffic.of_step(rehearsed, count),
    )


def keeps_reference(config: Config) -> bool:
    """Whether a frozen model to compare with, planned as a copy of the one that learns, has weights of its own on the device."""
    if config.task == "dpo":
        dpo = config.dpo
        return not (dpo.reference_free or dpo.cache or (config.lora.rank and dpo.reference is None))
    kl = config.rlhf.kl
    return (
        config.task in RL_TASKS
        and kl.coefficient > 0
        and not config.rlhf.offload_frozen
        and not (config.lora.rank and kl.reference is None)
    )


def microbatches_of(config: Config, layout: Layout) -> tuple[int, int]:
    """(microbatches of a step on a rank, how many of them show its peak).

    A stage of a pipeline has at most PP of them under way, of an interleaved one less than 2 PP (arXiv:2104.04473,
    section 2.2); the first that is added to gradients shows what that takes. ZeRO-3 learns in the first one what it may keep
    from one use to the next, so the second shows what each of the rest sends.
    """
    count = microbatches_of_step(config, layout.dp_size)
    enough = 2 * layout.pp_size if layout.vp_size > 1 else layout.pp_size + 1
    if config.parallel.zero_stage > 1:
        enough += 1
    return count, min(count, enough)


def _microbatches(config: Config, layout: Layout, count: int) -> list[MicroBatch]:
    """A rank's first microbatches of a step, as the run's data would be."""
    preferences = config.task in ("reward", "dpo")
    rows_per_sample = 2 if preferences else 1
    rows = count * config.batch.micro_batch_size * rows_per_sample
    ids_BS = np.zeros((rows, config.batch.seq_length), np.int64)
    encoder = config.model.architecture == "bert"
    documents_BS = ids_BS if config.data.documents_apart else None
    batch = SimpleNamespace(
        tokens_BS=ids_BS,
        labels_BS=ids_BS,
        loss_mask_BS=ids_BS.astype(np.float32),
        positions_BS=None if encoder else documents_BS,
        segments_BS=ids_BS if encoder else documents_BS,
        token_types_BS=ids_BS if encoder else None,
        classes_B=np.zeros(rows, np.int64) if encoder or preferences or config.task == "classify" else None,
        values_B=np.zeros(rows) if preferences else None,
        lengths_B=np.ones(rows, np.int64) if preferences else None,
        reference_B=np.zeros(rows) if preferences else None,
        rows_per_sample=rows_per_sample,
    )
    return split_samples(batch, layout, config.batch.micro_batch_size)


def _modules(engine: Engine) -> list[tuple[str, nn.Module]]:
    return [pair for chunk in engine.chunks for pair in chunk.named_modules()]


def _part(name: str) -> str:
    """What is left when everything else has a name is the model itself, which runs the head."""
    return next((part for pattern, part in PARTS if pattern.search(name)), HEAD)


def _parameters_by_part(engine: Engine) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name, module in _modules(engine):
        for parameter in module.parameters(recurse=False):
            # ZeRO-3 leaves an empty tensor in the place of a parameter that it has taken apart
            counts[_part(name)] += getattr(parameter, "ds_numel", parameter.numel())
    return dict(counts)


def _label_state(tracker: MemoryTracker, engine: Engine) -> None:
    """Weights are parameters and buffers (what is quantised), gradients what parameters name; all else is the optimizer's."""
    parameters = [p for _, module in _modules(engine) for p in module.parameters(recurse=False)]
    tracker.label(parameters, WEIGHTS)
    tracker.label((b for _, module in _modules(engine) for b in module.buffers(recurse=False)), WEIGHTS)
    tracker.label((p.ds_tensor for p in parameters if hasattr(p, "ds_tensor")), WEIGHTS)
    tracker.label((p.main_grad for p in parameters if hasattr(p, "main_grad")), GRADIENTS)
    tracker.relabel("other", OPTIMIZER)
