"""From a directory of Hugging Face's to a checkpoint of ours, and back."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megalm import atomic
from megalm.checkpoint.directory import (
    find_checkpoint,
    read_config,
    tokenizer_of,
    write_manifest,
)
from megalm.config import Config, parse_config
from megalm.config.model import ModelConfig
from megalm.convert.check import compare_logits
from megalm.convert.checkpoint import DTYPE_NAMES, write_checkpoint
from megalm.convert.families import family_named, family_of
from megalm.convert.families.base import Family
from megalm.convert.hub_files import HubTensors, write_tensors
from megalm.convert.rules import Rule
from megalm.convert.source import InFormat, Source, open_source
from megalm.convert.stored import Entry
from megalm.convert.tokenizers import copy_tokenizer, export_tokenizer, turn_ends
from megalm.errors import UserError
from megalm.lineage.record import hub_records, model_record, write_made

KEPT = "hugging_face"
"""Directory in a converted checkpoint with the small files that conversion back takes over."""
GENERATION = "generation_config.json"
TAKEN_OVER = ("config.json", GENERATION)
FILE_BYTES = 2 << 30
_TORCH_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}


def from_hugging_face(source: str | Path, target: str | Path, compare: bool = True) -> dict[str, Any]:
    """Write the model at `source` as a checkpoint at `target`, with its tokenizer and chat template.

    A tensor at a time is in memory. compare: run both models on the same tokens, in fp32, and tell the difference of
    their logits. Returns what was converted. Raises UserError for a model that we do not compute, for files that are
    missing or damaged, and where logits differ; then nothing is left at `target`.
    """
    source, target = Path(source), Path(target)
    settings = read_hub_config(source)
    family = family_named(settings.get("model_type"), str(source / "config.json"))
    tensors = HubTensors(source, family)
    with atomic.new_directory(target) as folder:
        config = _our_config(family, settings, source, tensors)
        _write(folder, family, config, tensors)
        if unused := tensors.unused():
            raise UserError(
                f"{source}: {len(unused)} tensors have no counterpart here ({', '.join(unused[:3])}, ...)"
            )
        copy_tokenizer(source, folder / "tokenizer")
        for name in TAKEN_OVER:
            if (source / name).is_file():
                (folder / KEPT).mkdir(exist_ok=True)
                shutil.copyfile(source / name, folder / KEPT / name)
        write_made(folder, "converted from Hugging Face's form", hub_records(source))
        write_manifest(folder, {})
        report = _describe(family, config)
        return report | (compare_logits(folder, source) if compare else {})


def to_hugging_face(
    source: str | Path,
    target: str | Path,
    family: str | None = None,
    like: str | Path | None = None,
    dtype: str | None = None,
    compare: bool = True,
    step: int | str | None = None,
) -> dict[str, Any]:
    """Write a checkpoint (or of a run, that of `step`) as a directory that transformers opens, tokenizer included.

    With a chat template beside the tokenizer, transformers' `generate` ends at its end of turn, too.

    family: a `model_type`, where several can hold the model. like: a directory of Hugging Face's whose config.json is
    taken over but for what the model says itself; by default that of the conversion to here. dtype: `fp32`, `bf16` or
    `fp16` for all weights; by default each stays as it is stored. Returns and raises as `from_hugging_face`.
    """
    source, target = find_checkpoint(source, step), Path(target)
    config = read_config(source)
    stored = open_source(source, config)
    if dtype is not None:
        stored = InFormat(stored, getattr(torch, _TORCH_NAMES[dtype]))
    kept, template = _template(source, config, Path(like) if like else None)
    chosen = family_of(config.model, family or template.get("model_type"))
    with atomic.new_directory(target) as folder:
        formats: set[torch.dtype] = set()
        write_tensors(folder, _theirs(chosen, config.model, stored, formats), FILE_BYTES)
        settings = _their_config(chosen, config.model, template, _TORCH_NAMES[_widest(formats)])
        tokenizer = tokenizer_of(source, config)
        if tokenizer is not None:
            settings = export_tokenizer(tokenizer, folder) | settings
        atomic.write_text(folder / "config.json", json.dumps(settings, indent=2) + "\n")
        ends = turn_ends(tokenizer) if tokenizer and config.model.architecture == "gpt" else []
        _write_generation(folder, None if kept is None else kept / GENERATION, settings, ends)
        write_made(folder, "converted to Hugging Face's form", [model_record("source", source)])
        report = _describe(chosen, config)
        return report | (compare_logits(source, folder, stored) if compare else {})


def read_hub_config(folder: Path) -> dict[str, Any]:
    """The config.json of a directory; UserError if there is none."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} has no config.json: name a directory of Hugging Face's with a model")
    return _read_settings(path)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); download it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings; download it again")
    return content


def _our_config(family: Family, settings: dict[str, Any], source: Path, tensors: HubTensors) -> Config:
    model = family.read(settings, str(source / "config.json"))
    first = tensors.outline(family.rules(ModelConfig(**model))[0].theirs[0])
    length = int(model["max_sequence_length"])
    return parse_config(
        {
            "task": "mlm" if model.get("architecture") == "bert" else "pretrain",
            "model": model,
            "batch": {"seq_length": length},
            "precision": {"dtype": DTYPE_NAMES.get(first.dtype, "fp32")},
        },
        where=str(source / "config.json"),
    )


def _write(folder: Path, family: Family, config: Config, tensors: HubTensors) -> None:
    """Everything of the checkpoint but its manifest."""
    model = config.model
    if model.tie_embeddings:
        _check_tied(family, model, tensors)
    write_checkpoint(folder, config, [_entry(rule, tensors) for rule in family.rules(model)])


def _entry(rule: Rule, tensors: HubTensors) -> Entry:
    outline = rule.join([tensors.outline(name) for name in rule.theirs])
    return Entry(
        rule.ours,
        tuple(outline.shape),
        outline.dtype,
        lambda: rule.join([tensors.read(name) for name in rule.theirs]),
    )


def _check_tied(family: Family, model: ModelConfig, tensors: HubTensors) -> None:
    """A file may hold the output matrix although it is the embedding; then it must be equal."""
    if not tensors.has("lm_head.weight"):
        return
    embedding = tensors.read(family.rules(model)[0].theirs[0])
    if not torch.equal(tensors.read("lm_head.weight"), embedding):
        raise UserError(
            f"{tensors.folder}: config.json says tie_word_embeddings, and lm_head.weight is not the embedding"
        )


def _theirs(
    family: Family, model: ModelConfig, stored: Source, formats: set[torch.dtype]
) -> Iterator[tuple[str, Tensor]]:
    """Their tensors in the order of the rules; the formats met on the way are added to `formats`."""
    for rule in family.rules(model):
        parts = rule.split(stored.read(rule.ours))
        for name, part in zip(rule.theirs, parts, strict=True):
            formats.add(part.dtype)
            yield name, part


def _their_config(family: Family, model: ModelConfig, template: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The config.json: the template where it describes this very model, else its entries beside the model's."""
    written = family.write(model, dtype)
    if template.get("model_type") == family.model_type:
        where = "config.json taken over"
        if family.read(template, where) == family.read({**template, **written}, where):
            return template | {"dtype": dtype}
    return template | written


def _write_generation(folder: Path, kept: Path | None, settings: dict[str, Any], ends: list[int]) -> None:
    """What transformers' `generate` goes by: the file taken over, and among the ids that end a text `ends`."""
    found = _read_settings(kept) if kept is not None and kept.is_file() else None
    content: dict[str, Any] = found or {
        key: settings[key] for key in ("bos_token_id", "pad_token_id") if key in settings
    }
    known = content.get("eos_token_id", settings.get("eos_token_id"))
    known = known if isinstance(known, list) else [known] if known is not None else []
    new = [end for end in ends if end not in known]
    if new:
        content = {**content, "eos_token_id": [*known, *new]}
        atomic.write_text(folder / GENERATION, json.dumps(content, indent=2) + "\n")
    elif kept is not None and found is not None:
        shutil.copyfile(kept, folder / GENERATION)


def _widest(formats: set[torch.dtype]) -> str:
    wide = torch.promote_types(*formats) if len(formats) == 2 else max(formats, key=lambda f: f.itemsize)
    return DTYPE_NAMES[wide]


def _template(checkpoint: Path, config: Config, like: Path | None) -> tuple[Path | None, dict[str, Any]]:
    """The directory whose small files are taken over, and its config.json: `like`, or what the weights came from."""
    if like is not None:
        return like, read_hub_config(like)
    if (checkpoint / KEPT / "config.json").is_file():
        return checkpoint / KEPT, read_hub_config(checkpoint / KEPT)
    if config.run.load is None:
        return None, {}
    try:
        parent = find_checkpoint(config.run.load)
        return _template(parent, read_config(parent), None)
    except UserError:  # it need not be there any more
        return None, {}


def _describe(family: Family, config: Config) -> dict[str, Any]:
    return {"family": family.model_type, "parameters": config.model.num_parameters()}
