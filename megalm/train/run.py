"""From a configuration to a finished run: directory, tokenizer, layout, engine, data, loop."""

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megalm import atomic
from megalm.checkpoint import find_checkpoint, list_checkpoints, load_weights, newest_intact, read_config
from megalm.checkpoint.directory import refuse_adapters
from megalm.checkpoint.metadata import read_tensors
from megalm.checkpoint.read import shared_list
from megalm.config import Config, data_parallel_size, dump_config
from megalm.config.model import MAY_CHANGE
from megalm.config.pipeline import bubble_fraction
from megalm.config.schema import DataSource
from megalm.dataset.inspect import verify_all
from megalm.dataset.label_stream import LabelStream
from megalm.dataset.pack_stream import PackStream
from megalm.dataset.sidecar import read_sidecar
from megalm.engine.base import Engine
from megalm.engine.build import build_engine
from megalm.errors import UserError
from megalm.model.kernel_choice import check_kernels
from megalm.model.names import check_names
from megalm.model.sequence_head import OUTPUT
from megalm.parallel.layout import create_layout
from megalm.tokenizer.base import Tokenizer
from megalm.tokenizer.load import load_tokenizer, tokenizer_files
from megalm.train.base_model import check_base_tokenizer
from megalm.train.callbacks import standard_callbacks
from megalm.train.callbacks.base import Run
from megalm.train.callbacks.samples import answering
from megalm.train.callbacks.sources import source_losses
from megalm.train.data import TrainingData, ValidationData, open_stream, open_validation
from megalm.train.evaluation import Evaluation
from megalm.train.lineage import FILE_NAME as LINEAGE
from megalm.train.lineage import compare_lineage, lineage_of, recorded_lineage
from megalm.train.lock import run_lock
from megalm.train.loop import Loop
from megalm.train.samples import open_prompts
from megalm.train.sft import carry_template
from megalm.train.steps import BatchSteps
from megalm.train.student import take_teacher_layers
from megalm.train.tasks import task_of


def main(config: Config) -> dict[str, Any]:
    """Train as `config` says in the world of processes that the environment describes; return the last figures.

    Collective: every process of the world calls it. UserError for what the user can mend.
    """
    check_names(config.model)
    check_kernels(config)
    config, tokenizer = resolve(config)
    train_stream = open_stream(config, config.data.train, tokenizer)
    packed = train_stream.describe() if isinstance(train_stream, PackStream | LabelStream) else []
    if config.data.verify:
        sources = [source.path for source in [*config.data.train, *config.data.valid]]
        verify_all(sources, int(os.environ.get("RANK", 0)), world_size())
    budget = _check_budget(config, train_stream.samples_in_budget)
    valid_stream = (
        open_validation(config, config.data.valid, tokenizer) if config.train.eval_interval else None
    )
    prompts = open_prompts(config, tokenizer) if config.samples.prompts is not None and tokenizer else None
    copies = data_parallel_size(config, world_size())
    directory = Path(config.run.dir)
    _check_directory(config, directory)
    _settle_base(config, directory)
    before, lineage = recorded_lineage(directory), lineage_of(config, tokenizer)
    notices = compare_lineage(directory, before, lineage)
    if config.run.load and (config.lora.rank or not before):
        check_base_tokenizer(config, tokenizer)
    lineage["tokenizer"] = lineage["tokenizer"] or before.get("tokenizer")

    layout = create_layout(config.parallel, config.run.seed)
    with run_lock(directory):
        prepare = task_of(config).prepare(config, layout, train_stream)
        engine = build_engine(config, layout)
        run = Run(config=config, layout=layout, directory=directory)
        if layout.pp_size > 1:
            run.facts["pipeline_bubble"] = bubble_fraction(config, copies)
        checkpoint = newest_intact(directory, layout)
        if checkpoint is None or config.lora.rank:
            notices += _first_weights(run, engine, has_checkpoint=checkpoint is not None)
        data = TrainingData(config, layout, train_stream)
        validation = ValidationData(config, layout, valid_stream) if valid_stream else None
        task = task_of(config)
        loss, tally = task.make_loss(config), task.tally(config) if task.tally else None
        evaluation = Evaluation(engine, loss, tally, prepare)
        callbacks = [
            *source_losses(config, layout, tokenizer, evaluation),
            *answering(engine, config, tokenizer, prompts),
            *standard_callbacks(config),
        ]
        steps = BatchSteps(engine, loss, data, prepare)
        validate = partial(evaluation.measure, validation) if validation else None
        loop = Loop(run, engine, steps, validate, callbacks)
        if checkpoint is not None:
            loop.resume(checkpoint)
            notices += _resumed(run)
        if checkpoint is None or run.step < config.train.steps:
            _prepare_directory(run, lineage)
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


def _check_directory(config: Config, directory: Path) -> None:
    """Refuse to mix two runs in one directory, before anything is built."""
    found = list_checkpoints(directory)
    if config.run.resume == "never" and found:
        raise UserError(f"{directory} holds checkpoints and run.resume is `never`: choose another run.dir")
    if config.run.resume == "always" and not found:
        raise UserError(f"{directory} holds no checkpoint to resume from: check run.dir")
    if before := _config_before(directory):
        _check_same_run(directory, before, config)


def _config_before(directory: Path) -> Config | None:
    """The configuration in the newest checkpoint of a run that can be read, None where there is none."""
    for path in reversed(list_checkpoints(directory).values()):
        try:
            return read_config(path)
        except UserError:
            continue  # resuming will come to the one before it, too
    return None


def _settle_base(config: Config, directory: Path) -> None:
    """Let `run.load` of adapters name a checkpoint by its whole path, the one that the run in `directory` began with.

    The run that made it may go on, and whoever uses the adapters may stand in another directory.
    """
    if not config.lora.rank:
        return
    before = _config_before(directory)
    config.run.load = before.run.load if before else str(find_checkpoint(str(config.run.load)).resolve())


def _same_base(before: Config, now: Config) -> bool:
    """Whether `run.load` means the same: the checkpoint itself, or its run."""
    old, new = Path(str(before.run.load)).resolve(), Path(str(now.run.load)).resolve()
    return new in (old, old.parent.parent)


def _check_same_run(directory: Path, before: Config, now: Config) -> None:
    old, new = _fixed_values(before), _fixed_values(now)
    if now.lora.rank and _same_base(before, now):
        new["run.load"] = old.get("run.load")
    for name, value in new.items():
        if old.get(name) != value:
            raise UserError(
                f"{directory} holds a run with {name} {old.get(name)}, this one has {value}: choose another run.dir"
            )


def _fixed_values(config: Config) -> dict[str, Any]:
    """What the weights and the samples hang on: another value is another run."""
    values = {f"model.{key}": value for key, value in config.model.model_dump(exclude=MAY_CHANGE).items()}
    values |= {
        "task": config.task,
        "run.seed": config.run.seed,
        "batch.seq_length": config.batch.seq_length,
        "data.reset_at_document_end": config.data.reset_at_document_end,
        "data.packing": config.data.packing,
        "train.freeze": config.train.freeze,
        "train.train_last_layers": config.train.train_last_layers,
    }
    if config.lora.rank:
        values |= {f"lora.{key}": value for key, value in config.lora.model_dump().items()}
        values["run.load"] = config.run.load
    else:
        values["lora.rank"] = 0
    if config.task != "pretrain":
        values |= {f"{config.task}.{key}": v for key, v in getattr(config, config.task).model_dump().items()}
        values.pop("distill.cache", None)
    if config.distill.cache:
        values.pop("distill.teacher", None)  # a cache knows what it was made of
    return values


def _prepare_directory(run: Run, lineage: dict[str, Any]) -> None:
    """Write the resolved configuration, a copy of the tokenizer and the lineage."""
    config, directory = run.config, run.directory
    if run.layout.rank == 0:
        directory.mkdir(parents=True, exist_ok=True)
        dump_config(config, directory / "config.yaml")
        if config.tokenizer.path:
            _copy_tokenizer(Path(config.tokenizer.path), directory / "tokenizer")
            carry_template(config, directory / "tokenizer")
        atomic.write_text(directory / LINEAGE, json.dumps(lineage, indent=1))
    dist.barrier()


def _copy_tokenizer(source: Path, target: Path) -> None:
    if source.resolve() == target.resolve():
        return
    target.mkdir(parents=True, exist_ok=True)
    for file in tokenizer_files(source):
        shutil.copyfile(file, target / file.name)


def _first_weights(run: Run, engine: Engine, has_checkpoint: bool) -> list[str]:
    """Take another run's weights if the configuration names one; say so. UserError if only damaged checkpoints are here."""
    if not has_checkpoint and (found := shared_list(run.directory, run.layout)):
        raise UserError(
            f"{run.directory}: none of its {len(found)} checkpoints is intact: choose another run.dir"
        )
    config, layers = run.config, run.config.distill.init_from_teacher_layers
    if config.task == "distill" and layers is not None:
        assert config.distill.teacher is not None
        take_teacher_layers(engine, config, find_checkpoint(config.distill.teacher), run.directory)
        return [f"weights taken from the layers {layers} of {config.distill.teacher}"]
    if not config.run.load:
        alone = config.task == "sft" and not has_checkpoint
        return ["task sft without run.load: the model begins with random weights"] if alone else []
    base = find_checkpoint(config.run.load)
    if run.config.lora.rank:
        refuse_adapters(base)
    with_optimizer = run.config.run.load_optimizer
    load_weights(engine, base, with_optimizer)
    told = [f"weights{' and optimizer' * with_optimizer} taken from {run.config.run.load}"]
    if run.config.model.sequence_head.outputs and OUTPUT not in read_tensors(base):
        told.append(f"{run.config.run.load} has no sequence head: this one's is new")
    return told


def _resumed(run: Run) -> list[str]:
    """What there is to tell of a run that goes on."""
    told = [f"going on from the checkpoint of step {run.step} under {run.layout.describe()}"]
    if run.config.run.load and not run.config.lora.rank:
        told.append("run.load is not used: the run directory has a checkpoint of its own")
    if run.step >= run.config.train.steps:
        told.append(f"nothing to do: train.steps is {run.config.train.steps}")
    return told
