"""The directory of a run: whose it is, what it begins with, and what is written down in it before the first step."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megalm import atomic
from megalm.checkpoint import find_checkpoint, list_checkpoints, load_weights, read_config
from megalm.checkpoint.directory import refuse_adapters
from megalm.checkpoint.metadata import read_tensors
from megalm.checkpoint.read import shared_list
from megalm.config import Config, dump_config
from megalm.config.model import MAY_CHANGE
from megalm.config.rlhf import MAY_CHANGE as RLHF_MAY_CHANGE
from megalm.config.rlhf import RL_TASKS
from megalm.engine.base import Engine
from megalm.errors import UserError
from megalm.model.sequence_head import OUTPUT
from megalm.run_files import CONFIG, LINEAGE
from megalm.tokenizer.load import tokenizer_files
from megalm.train.callbacks.base import Run
from megalm.train.lineage import with_start
from megalm.train.sft import carry_template
from megalm.train.student import take_teacher_layers


def check_directory(config: Config, directory: Path) -> None:
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


def settle_base(config: Config, directory: Path) -> None:
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
    if config.task in RL_TASKS:
        fixed = config.rlhf.model_dump(exclude=RLHF_MAY_CHANGE)  # type: ignore[arg-type]
        values |= {f"rlhf.{key}": value for key, value in fixed.items()}
    elif config.task != "pretrain":
        values |= {f"{config.task}.{key}": v for key, v in getattr(config, config.task).model_dump().items()}
        values.pop(f"{config.task}.cache", None)
    if config.task == "dpo" and config.dpo.reference is None:
        values["run.load"] = config.run.load  # what is compared with
    if config.distill.cache:
        values.pop("distill.teacher", None)  # a cache knows what it was made of
    return values


def prepare_directory(run: Run, lineage: dict[str, Any]) -> None:
    """Write the resolved configuration, a copy of the tokenizer and the lineage."""
    config, directory = run.config, run.directory
    if run.layout.rank == 0:
        directory.mkdir(parents=True, exist_ok=True)
        dump_config(config, directory / CONFIG)
        if config.tokenizer.path:
            _copy_tokenizer(Path(config.tokenizer.path), directory / "tokenizer")
            carry_template(config, directory / "tokenizer")
        record = with_start(directory, lineage, run.step, run.layout.describe())
        atomic.write_text(directory / LINEAGE, json.dumps(record, indent=1))
    dist.barrier()


def _copy_tokenizer(source: Path, target: Path) -> None:
    if source.resolve() == target.resolve():
        return
    target.mkdir(parents=True, exist_ok=True)
    for file in tokenizer_files(source):
        shutil.copyfile(file, target / file.name)


def first_weights(run: Run, engine: Engine, has_checkpoint: bool) -> list[str]:
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
        alone = config.task in ("sft", "reward", "dpo") and not has_checkpoint
        return [f"task {config.task} without run.load: the model begins with random weights"] if alone else []
    base = find_checkpoint(config.run.load)
    if run.config.lora.rank:
        refuse_adapters(base)
    with_optimizer = run.config.run.load_optimizer
    load_weights(engine, base, with_optimizer)
    told = [f"weights{' and optimizer' * with_optimizer} taken from {run.config.run.load}"]
    if run.config.model.sequence_head.outputs and OUTPUT not in read_tensors(base):
        told.append(f"{run.config.run.load} has no sequence head: this one's is new")
    return told


def resumed(run: Run) -> list[str]:
    """What there is to tell of a run that goes on."""
    told = [f"going on from the checkpoint of step {run.step} under {run.layout.describe()}"]
    if run.config.run.load and not run.config.lora.rank:
        told.append("run.load is not used: the run directory has a checkpoint of its own")
    if run.step >= run.config.train.steps:
        told.append(f"nothing to do: train.steps is {run.config.train.steps}")
    return told
