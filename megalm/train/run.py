"""From a configuration to a finished run: directory, tokenizer, layout, engine, data, loop."""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

import megalm
from megalm import atomic
from megalm.checkpoint import find_checkpoint, list_checkpoints, load_weights, newest_intact, read_config
from megalm.checkpoint.metadata import read_tensors
from megalm.checkpoint.read import refuse_adapters, shared_list
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
from megalm.train.lock import run_lock
from megalm.train.loop import Loop
from megalm.train.samples import open_prompts
from megalm.train.sft import carry_template
from megalm.train.student import take_teacher_layers
from megalm.train.tasks import task_of

logger = logging.getLogger(__name__)


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
    before, lineage = _recorded_lineage(directory), _lineage(config, tokenizer)
    notices = _compare_lineage(directory, before, lineage)
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
        callbacks = [
            *source_losses(engine, config, tokenizer, loss),
            *answering(engine, config, tokenizer, prompts),
            *standard_callbacks(config),
        ]
        loop = Loop(run, engine, loss, data, validation, callbacks, tally, prepare)
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


def _hashes(sources: list[DataSource]) -> dict[str, str | None]:
    return {path: sidecar.get("bin_sha256") for path, sidecar in _sidecars(sources).items()}


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
    for path in reversed(found.values()):
        try:
            before = read_config(path)
        except UserError:
            continue  # resuming will come to the one before it, too
        _check_same_run(directory, before, config)
        return


def _check_same_run(directory: Path, before: Config, now: Config) -> None:
    old, new = _fixed_values(before), _fixed_values(now)
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
    if config.task == "sft":
        values |= {f"sft.{key}": value for key, value in config.sft.model_dump().items()}
    if config.task == "classify":
        values |= {f"classify.{key}": value for key, value in config.classify.model_dump().items()}
    if config.task == "mlm":
        values |= {f"mlm.{key}": value for key, value in config.mlm.model_dump().items()}
    if config.task == "distill":
        # a cache knows what it was made of
        without = {"teacher", "cache"} if config.distill.cache else {"cache"}
        values |= {f"distill.{key}": v for key, v in config.distill.model_dump(exclude=without).items()}
    return values


def _recorded_lineage(directory: Path) -> dict[str, Any]:
    """What the run in `directory` was made of, nothing where there is no run to go on with."""
    path = directory / "lineage.json"
    if not list_checkpoints(directory) or not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}): delete it to resume without comparing the data"
        ) from None


def _compare_lineage(directory: Path, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Refuse another tokenizer than the run began with; return what else differs, to be told."""
    old, new = before.get("tokenizer"), now["tokenizer"]
    if old and new and old != new:
        raise UserError(
            f"{directory} holds a run with the tokenizer {old}, this one has {new}: use {directory / 'tokenizer'} "
            "or choose another run.dir"
        )
    before = {
        "shares": now["shares"],
        "validation": now["validation"],
        **before,
    }  # not in the records of earlier versions
    if "data" not in before or _data_of(before) == _data_of(now):
        return []
    told = "the data are not those that this run was trained on before: the curve goes on with others"
    if int(os.environ.get("RANK", 0)) == 0:
        logger.warning("%s: %s (%s was %s)", directory, told, _data_of(now), _data_of(before))
    return [told]


def _data_of(lineage: dict[str, Any]) -> list[str]:
    """Hashes of the token files in their order, wherever they lie now (the path of those without a record), and shares."""
    training, validation = (
        [digest or path for path, digest in lineage[part].items()] for part in ("data", "validation")
    )
    return [*training, f"shares {lineage['shares']}", *(f"validation {found}" for found in validation)]


def _prepare_directory(run: Run, lineage: dict[str, Any]) -> None:
    """Write the resolved configuration, a copy of the tokenizer and the lineage."""
    config, directory = run.config, run.directory
    if run.layout.rank == 0:
        directory.mkdir(parents=True, exist_ok=True)
        dump_config(config, directory / "config.yaml")
        if config.tokenizer.path:
            _copy_tokenizer(Path(config.tokenizer.path), directory / "tokenizer")
            carry_template(config, directory / "tokenizer")
        atomic.write_text(directory / "lineage.json", json.dumps(lineage, indent=1))
    dist.barrier()


def _copy_tokenizer(source: Path, target: Path) -> None:
    if source.resolve() == target.resolve():
        return
    target.mkdir(parents=True, exist_ok=True)
    for file in tokenizer_files(source):
        shutil.copyfile(file, target / file.name)


def _lineage(config: Config, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Hashes of what the run is made of, and each training source's share in the blend."""
    resolved = json.dumps(config.model_dump(), sort_keys=True)
    return {
        "megalm": megalm.__version__,
        "config": hashlib.sha256(resolved.encode()).hexdigest(),
        "tokenizer": tokenizer.hash if tokenizer else None,
        "data": _hashes(config.data.train),
        "validation": _hashes(config.data.valid),
        "shares": _shares(config.data.train),
        "parent": config.run.load,
    }


def _shares(sources: list[DataSource]) -> list[Any]:
    """Each source's weight as a part of all, or its budget."""
    weights = [1.0 if source.weight is None else source.weight for source in sources]
    budgets = [source.model_dump(include={"tokens", "epochs"}, exclude_none=True) for source in sources]
    return budgets if any(budgets) else [weight / sum(weights) for weight in weights]


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
    if not run.config.run.load:
        alone = run.config.task == "sft" and not has_checkpoint
        return ["task sft without run.load: the model begins with random weights"] if alone else []
    base = find_checkpoint(run.config.run.load)
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
