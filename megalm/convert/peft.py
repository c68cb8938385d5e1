"""Writes adapters as a directory that Hugging Face's PEFT loads onto the model that they adapt."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from megalm import atomic
from megalm.checkpoint.directory import TENSORS, find_base, find_checkpoint, read_config, verify
from megalm.checkpoint.metadata import read_tensors
from megalm.config.lora import LoraConfig
from megalm.config.model import ModelConfig
from megalm.convert.check import compare_logits
from megalm.convert.families import family_of
from megalm.convert.families.base import Family
from megalm.convert.rules import Rule
from megalm.convert.source import Apart, open_source
from megalm.convert.stored import StoredTensors
from megalm.errors import UserError
from megalm.lineage.record import model_record, write_made


def to_peft(
    source: str | Path,
    target: str | Path,
    step: int | str | None = None,
    base: str | Path | None = None,
    compare: bool = True,
) -> dict[str, Any]:
    """Write the adapters of a run, or of one of its checkpoints, as adapter_config.json and adapter_model.safetensors.

    base: what adapter_config.json names as the model, a directory or a name on the hub. Queries, keys and values have
    one A here and one each there: three copies. Adapters of a quantised base are written as they are: beside the base in
    another form they are off by the difference of the two. compare: where `base` is a directory, and was not quantised, run
    it with PEFT and tell the difference of the logits. Raises UserError for a checkpoint without adapters, for a model that
    no family of Hugging Face holds, and where logits differ.
    """
    folder, target = find_checkpoint(source, step), Path(target)
    if wrong := verify(folder):
        raise UserError(f"{wrong}; use another checkpoint")
    config = read_config(folder)
    if not config.lora.rank:
        raise UserError(f"{folder} holds no adapters: its run had lora.rank 0")
    family = family_of(config.model)
    stored = StoredTensors(folder / TENSORS, read_tensors(folder), config.model)
    tensors = dict(_theirs(family, config.model, stored))
    modules = sorted({name.rpartition(".lora_")[0].rpartition(".")[2] for name in tensors})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if config.model.architecture == "gpt" else None,
        "base_model_name_or_path": str(base) if base else None,
        "r": config.lora.rank,
        **_scaling(config.lora),
        "lora_dropout": config.lora.dropout,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": family.model_type == "gpt2",
        "inference_mode": True,
    }
    with atomic.new_directory(target) as made:
        save_file(tensors, made / "adapter_model.safetensors", metadata={"format": "pt"})
        atomic.write_text(made / "adapter_config.json", json.dumps(settings, indent=2) + "\n")
        write_made(made, "adapters in PEFT's form", [model_record("source", folder)])
        whole = config.lora.quantize_base == "none"
        compared = {}
        if compare and whole and base is not None and Path(base).is_dir():
            apart = Apart(open_source(find_base(folder, config)), stored)
            compared = compare_logits(folder, Path(base), apart, adapters=made)
    return {
        "family": family.model_type,
        "parameters": sum(part.numel() for part in tensors.values()),
    } | compared


def _scaling(lora: LoraConfig) -> dict[str, Any]:
    """Their words for the scale. For experts, whose matrices PEFT joins at twice the rank, they hold without a root alone."""
    if lora.scaling == "standard":
        return {"lora_alpha": lora.alpha}
    if lora.experts:
        return {"lora_alpha": lora.scale * lora.rank}
    return {"lora_alpha": lora.alpha, "use_rslora": True}


def _theirs(family: Family, model: ModelConfig, stored: StoredTensors) -> Iterator[tuple[str, Tensor]]:
    for rule in family.rules(model):
        name = rule.ours.removesuffix(".weight")
        if not (rule.ours.endswith(".weight") and stored.has(f"{name}.lora.a")):
            continue
        a, b = (stored.read(f"{name}.lora.{factor}") for factor in "ab")
        for theirs, rows in zip(rule.theirs, _rows(rule, b), strict=True):
            module = f"base_model.model.{theirs.removesuffix('.weight')}"
            yield f"{module}.lora_A.weight", a.clone()
            yield f"{module}.lora_B.weight", rows.contiguous()


def _rows(rule: Rule, b: Tensor) -> list[Tensor]:
    """The parts of B for each of their modules: their order of outputs, as the rule has it of a weight's rows."""
    parts = list(rule.split(b))
    # a rule that transposes a weight transposes B too, whose inputs are the rank
    return [part.T if rule.transposes else part for part in parts]
