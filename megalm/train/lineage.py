"""What a run is made of, as RUN_DIR/lineage.json tells it: hashes of tokenizer and data, shares, models, and when it was started."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from megalm.checkpoint import list_checkpoints
from megalm.config import Config
from megalm.config.rewards import ModelRewardConfig
from megalm.config.rlhf import RL_TASKS
from megalm.config.schema import DataSource
from megalm.dataset.sidecar import read_sidecar
from megalm.errors import UserError
from megalm.lineage.record import file_record, model_record, now, program
from megalm.run_files import LINEAGE as FILE_NAME
from megalm.tokenizer.base import Tokenizer

logger = logging.getLogger(__name__)

WEIGHTS = "weights"
"""Role of the model that a run begins with."""


def lineage_of(config: Config, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Hashes of what the run is made of, each training source's share in the blend, and the models that it begins with or asks."""
    resolved = json.dumps(config.model_dump(), sort_keys=True)
    return {
        "config": hashlib.sha256(resolved.encode()).hexdigest(),
        "tokenizer": tokenizer.hash if tokenizer else None,
        "data": _hashes(config.data.train),
        "validation": _hashes(config.data.valid),
        "shares": _shares(config.data.train),
        "models": [model_record(role, path) for role, path in _models(config)],
        "files": [file_record(role, path) for role, path in _prompts(config)],
    }


def recorded_lineage(directory: Path) -> dict[str, Any]:
    """What the run in `directory` was made of, nothing where there is no run to go on with."""
    path = directory / FILE_NAME
    if not list_checkpoints(directory) or not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}): delete it to resume without comparing the data"
        ) from None


def compare_lineage(directory: Path, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Refuse another tokenizer than the run began with; return what else differs, to be told."""
    old, new = before.get("tokenizer"), now["tokenizer"]
    if old and new and old != new:
        raise UserError(
            f"{directory} holds a run with the tokenizer {old}, this one has {new}: use {directory / 'tokenizer'} "
            "or choose another run.dir"
        )
    # not in the records of earlier versions
    before = {"shares": now["shares"], "validation": now["validation"], "files": now["files"], **before}
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
    prompts = [f"{each['role']} {each['sha256']}" for each in lineage["files"]]
    return [
        *training,
        f"shares {lineage['shares']}",
        *(f"validation {found}" for found in validation),
        *prompts,
    ]


def _hashes(sources: list[DataSource]) -> dict[str, str | None]:
    """Of each source's tokens, by its path; None for files of other programs."""
    return {source.path: (read_sidecar(source.path) or {}).get("bin_sha256") for source in sources}


def _shares(sources: list[DataSource]) -> list[Any]:
    """Each source's weight as a part of all, or its budget."""
    weights = [1.0 if source.weight is None else source.weight for source in sources]
    budgets = [source.model_dump(include={"tokens", "epochs"}, exclude_none=True) for source in sources]
    return budgets if any(budgets) else [weight / sum(weights) for weight in weights]


def _models(config: Config) -> list[tuple[str, str]]:
    """Roles and paths of the models that the configuration names."""
    named = [(WEIGHTS, config.run.load)]
    if config.task == "distill":
        named.append(("teacher", config.distill.teacher))
    if config.task == "dpo":
        named.append(("reference", config.dpo.reference))
    if config.task in RL_TASKS:
        named += [("reference", config.rlhf.kl.reference), ("critic", config.rlhf.critic.load)]
        models = [each for each in config.rlhf.rewards if isinstance(each, ModelRewardConfig)]
        named += [(f"reward {each.title}", each.checkpoint) for each in models]
    return [(role, path) for role, path in named if path]


def _prompts(config: Config) -> list[tuple[str, str]]:
    if config.task not in RL_TASKS:
        return []
    named = {"prompts": config.rlhf.prompts, "held-out prompts": config.rlhf.eval_prompts}
    return [(role, source.path) for role, sources in named.items() for source in sources]


def with_start(directory: Path, lineage: dict[str, Any], step: int, layout: str) -> dict[str, Any]:
    """The lineage with one more start of the run: when, at which step, under which layout, by which program.

    A run that goes on has weights of its own: those that it began with stay recorded.
    """
    before = recorded_lineage(directory)
    start = {"time": now(), "step": step, "layout": layout, "program": program()}
    first = {each["role"]: each for each in before.get("models", []) if each["role"] == WEIGHTS}
    models = [first.get(each["role"], each) for each in lineage["models"]]
    return lineage | {"models": models, "starts": [*before.get("starts", []), start]}
