"""Writes a checkpoint with fewer layers: those are left out that change least, or that are named."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from megalm.checkpoint.directory import tokenizer_of
from megalm.compress.calibrate import angular_distances, block_influence
from megalm.compress.source import Whole, open_calibration_model, open_whole
from megalm.compress.text import Text
from megalm.config.suggest import nearest
from megalm.convert.derived import plain_config
from megalm.convert.layers import keep_layers
from megalm.errors import UserError

MEASURES = ("angular", "block_influence")
RECIPE = "distill.yaml"
"""Beside the weights: a training configuration that lets the smaller model learn from the whole one."""


def drop_layers(
    source: str | Path,
    target: str | Path,
    layers: Sequence[int] | None = None,
    count: int | None = None,
    by: str = "angular",
    open_text: Callable[..., Text] | None = None,
    step: int | str | None = None,
    dtype: str = "fp32",
) -> dict[str, Any]:
    """Write the model at `source` at `target` without the layers that are named (from 0), or without `count` that change least.

    by: `angular`, the neighbours that turn the hidden states least (arXiv:2403.17887); `block_influence`, the layers that each
    change theirs least (arXiv:2403.03853); on the text that `open_text` opens given (configuration, tokenizer), in `dtype`. A
    recipe of the distillation that wins some of it back lies beside the weights. Returns what was made, with the measures.
    Raises UserError for what cannot be; then nothing is left at `target`.
    """
    if by not in MEASURES:
        raise UserError(f"measure {by!r} is unknown{nearest(by, MEASURES)} (known: {', '.join(MEASURES)})")
    whole = open_whole(source, step)
    total = whole.config.model.num_layers
    measures: dict[str, Any] = {}
    if layers is not None:
        gone = _named(layers, total)
    else:
        gone, measures = _least(whole, count, by, open_text, dtype)
    kept = [layer for layer in range(total) if layer not in gone]
    recipe = yaml.safe_dump(recovery_recipe(whole, target, len(kept)), sort_keys=False)
    made = keep_layers(whole.folder, target, kept, {RECIPE: _HEAD.format(target=target) + recipe})
    return {
        "source": str(whole.folder),
        "dropped": gone,
        "kept": kept,
        "parameters": made["parameters"],
    } | measures


_HEAD = """# The model without some of its layers learns from the whole one what these did:
#     megalm train {target}/distill.yaml
"""


def recovery_recipe(whole: Whole, target: str | Path, layers: int) -> dict[str, Any]:
    """Sections of a training configuration: task `distill`, from the model at `target`, with the whole one as the teacher."""
    config = plain_config(whole.config)
    config.model.num_layers, config.model.preset = layers, None
    if tokenizer_of(whole.folder, whole.config) is not None:
        config.tokenizer.path = f"{target}/tokenizer"
    kept = {"model", "tokenizer", "data", "batch", "precision"}
    sections = config.model_dump(mode="json", include=kept, exclude_defaults=True)
    return {
        "run": {"dir": f"{target}-distilled", "load": str(target)},
        "task": "distill",
        "distill": {"teacher": str(whole.folder), "alpha": 0.5, "temperature": 1.0},
        **sections,
        "optimizer": {"lr": 3e-4, "min_lr": 3e-5, "warmup_steps": 20},
        "train": {"steps": 500, "eval_interval": 100 if config.data.valid else 0},
    }


def _named(layers: Sequence[int], total: int) -> list[int]:
    gone = sorted(set(layers))
    if not gone or gone[0] < 0 or gone[-1] >= total:
        raise UserError(f"layers to drop {list(layers)}: the model has 0 to {total - 1}; name some of them")
    if len(gone) == total:
        raise UserError(f"layers to drop {list(layers)}: these are all; one at least must stay")
    return gone


def _least(
    whole: Whole, count: int | None, by: str, open_text: Callable[..., Text] | None, dtype: str
) -> tuple[list[int], dict[str, Any]]:
    """The layers to drop, and the measures of all."""
    total = whole.config.model.num_layers
    if count is None or not 0 < count < total:
        found = "is missing" if count is None else f"is {count}"
        raise UserError(
            f"the number of layers to drop {found}: the model has {total}, give 1 to {total - 1}, or name layers"
        )
    if open_text is None:
        raise UserError(
            "which layers change least shows on text: name text or token files with --calibration, or name the layers with --layers"
        )
    engine, config, tokenizer = open_calibration_model(whole, dtype)
    text = open_text(config, tokenizer)
    if by == "angular":
        distances = angular_distances(engine, text, count)
        first = distances.index(min(distances))
        return list(range(first, first + count)), {"angular_distance": distances}
    influence = block_influence(engine, text)
    return sorted(sorted(range(total), key=influence.__getitem__)[:count]), {"block_influence": influence}
