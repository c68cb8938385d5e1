"""From a configuration to a finished run: directory, tokenizer, layout, engine, data, loop."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megalm.checkpoint import newest_intact
from megalm.config import Config, data_parallel_size
from megalm.config.pipeline import bubble_fraction
from megalm.config.schema import DataSource
from megalm.dataset.inspect import verify_all
from megalm.dataset.label_stream import LabelStream
from megalm.dataset.pack_stream import PackStream
from megalm.dataset.preference_stream import PreferenceStream
from megalm.dataset.sidecar import read_sidecar
from megalm.engine.build import build_engine
from megalm.errors import UserError
from megalm.model.kernel_choice import check_kernels
from megalm.model.names import check_names
from megalm.parallel.layout import create_layout
from megalm.tokenizer.base import Tokenizer
from megalm.tokenizer.load import load_tokenizer
from megalm.train.base_model import check_base_tokenizer
from megalm.train.callbacks import standard_callbacks
from megalm.train.callbacks.base import Run
from megalm.train.callbacks.samples import answering
from megalm.train.callbacks.sources import source_losses
from megalm.train.callbacks.task_scores import open_tasks, task_scores
from megalm.train.data import TrainingData, ValidationData, open_stream, open_validation
from megalm.train.directory import check_directory, first_weights, prepare_directory, resumed, settle_base
from megalm.train.evaluation import Evaluation
from megalm.train.lineage import compare_lineage, lineage_of, recorded_lineage
from megalm.train.lock import run_lock
from megalm.train.loop import Loop
from megalm.train.samples import open_prompts
from megalm.train.steps import BatchSteps
from megalm.train.tasks import task_of
from megalm.watch.hang import watching


def main(config: Config) -> dict[str, Any]:
    """Train as `config` says in the world of processes that the environment describes; return the last figures.

    Collective: every process of the world calls it. UserError for what the user can mend.
    """
    check_names(config.model)
    check_kernels(config)
    config, tokenizer = resolve(config)
    train_stream = open_stream(config, config.data.train, tokenizer)
    packed = (
        train_stream.describe()
        if isinstance(train_stream, PackStream | LabelStream | PreferenceStream)
        else []
    )
    if config.data.verify:
        sources = [source.path for source in [*config.data.train, *config.data.valid]]
        verify_all(sources, int(os.environ.get("RANK", 0)), world_size())
    budget = _check_budget(config, train_stream.samples_in_budget)
    valid_stream = (
        open_validation(config, config.data.valid, tokenizer) if config.train.eval_interval else None
    )
    prompts = open_prompts(config, tokenizer) if config.samples.prompts is not None and tokenizer else None
    tasks = open_tasks(config) if config.evaluate.tasks else None
    copies = data_parallel_size(config, world_size())
    directory = Path(config.run.dir)
    check_directory(config, directory)
    settle_base(config, directory)
    before, lineage = recorded_lineage(directory), lineage_of(config, tokenizer)
    notices = compare_lineage(directory, before, lineage)
    if config.run.load and (config.lora.rank or not before):
        check_base_tokenizer(config, tokenizer)
    lineage["tokenizer"] = lineage["tokenizer"] or before.get("tokenizer")

    layout = create_layout(config.parallel, config.run.seed)
    with run_lock(directory), watching(config.watch, directory, layout):
        engine = build_engine(config, layout)
        run = Run(config=config, layout=layout, directory=directory)
        if layout.pp_size > 1:
            run.facts["pipeline_bubble"] = bubble_fraction(config, copies)
        checkpoint = newest_intact(directory, layout, tell=notices.append)
        if checkpoint is None or config.lora.rank:
            notices += first_weights(run, engine, has_checkpoint=checkpoint is not None)
        task = task_of(config)
        prepare = task.prepare(config, layout, train_stream, engine)
        data = TrainingData(config, layout, train_stream)
        validation = ValidationData(config, layout, valid_stream) if valid_stream else None
        loss, tally = task.make_loss(config), task.tally(config) if task.tally else None
        evaluation = Evaluation(engine, loss, tally, prepare)
        callbacks = [
            *source_losses(config, layout, tokenizer, evaluation),
            *answering(engine, config, tokenizer, prompts),
            *task_scores(engine, config, tokenizer, tasks),
            *standard_callbacks(config),
        ]
        steps = BatchSteps(engine, loss, data, prepare)
        validate = partial(evaluation.measure, validation) if validation else None
        loop = Loop(run, engine, steps, validate, callbacks)
        if checkpoint is not None:
            loop.resume(checkpoint)
            notices += resumed(run)
        if checkpoint is None or run.step < config.train.steps:
            prepare_directory(run, lineage)
        loop.notices = [*budget, *packed, *(prompts.notices if prompts else []), *notices]
        return loop.train() | {"run_dir": str(directory), "layout": layout.describe()}


def _check_budget(config: Config, samples: int | None) -> list[str]:
    """Refuse a run that is longer than the budgets of its sources; tell of one that does not use them up."""
    steps, batch = config.train.steps, config.batch.global_batch_size
    needed = steps * batch
    if samples is None or needed <= samples < needed + batch:
        return []
    if needed < samples:
        return [
            f"train.steps {steps} take {needed} of the {samples} samples that the budgets in data.train come to"
        ]
    raise UserError(
        f"train.steps {steps} x batch.global_batch_size {batch} = {needed} samples, but the budgets in data.train come to "
        f"{samples}: set train.steps to {samples // batch} or raise the budgets"
    )


def resolve(config: Config) -> tuple[Config, Tokenizer | None]:
    """Take the vocabulary from the tokenizer (else from the data) and refuse a configuration whose data do not fit it."""
    if config.quantization.method != "none":
        raise UserError(
            f"quantization.method {config.quantization.method}: weights that are trained are not quantised; leave the section "
            "out, for adapters on a quantised model set lora.quantize_base"
        )
    if not config.data.train:
        raise UserError("data.train is empty: name token files, e.g. 'data.train=[{path: data/books_train}]'")
    if config.train.eval_interval and not config.data.valid:
        raise UserError("train.eval_interval is set but data.valid is empty: name token files or set it to 0")
    return resolve_vocabulary(config)


def resolve_vocabulary(config: Config) -> tuple[Config, Tokenizer | None]:
    """A copy with the vocabulary taken from the tokenizer, else from the data, and what the task takes from them; UserError
    where none tells the vocabulary, or they differ."""
    config = config.model_copy(deep=True)
    tokenizer = load_tokenizer(config.tokenizer.path) if config.tokenizer.path else None
    sidecars = _sidecars([*config.data.train, *config.data.valid])
    needed = tokenizer.vocab_size if tokenizer else _vocabulary_of(sidecars)
    if config.model.vocab_size is None and not needed:
        raise UserError("model.vocab_size is unknown: set it, or tokenizer.path")
    if config.model.vocab_size is None:
        config.model.vocab_size = needed
    elif config.model.vocab_size < needed:
        raise UserError(
            f"model.vocab_size {config.model.vocab_size} is smaller than the tokenizer's {needed}: "
            "leave it out to take the tokenizer's"
        )
    task = task_of(config)
    return (task.complete(config) if task.complete else config), tokenizer


def _sidecars(sources: list[DataSource]) -> dict[str, dict[str, Any]]:
    """What is recorded of each source, by its path; nothing for files of other programs."""
    return {source.path: read_sidecar(source.path) or {} for source in sources}


def _vocabulary_of(sidecars: dict[str, dict[str, Any]]) -> int:
    """Size of the vocabulary that the sources were made with, 0 where none records it; it must be one tokenizer's."""
    known = {path: sidecar for path, sidecar in sidecars.items() if "tokenizer_hash" in sidecar}
    paths = {sidecar["tokenizer_hash"]: path for path, sidecar in known.items()}
    if len(paths) > 1:
        raise UserError(
            f"{' and '.join(paths.values())} were made with different tokenizers: build them with one"
        )
    return max((sidecar["vocab_size"] for sidecar in known.values()), default=0)


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", 1))
