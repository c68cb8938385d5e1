"""Makes one checkpoint of several: their weighted average; or of one with adapters, these added to what they adapt."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from megalm import atomic
from megalm.checkpoint.directory import (
    find_base,
    find_checkpoint,
    read_config,
    refuse_among_checkpoints,
    tokenizer_of,
    write_manifest,
)
from megalm.checkpoint.metadata import TensorInfo, read_tensors
from megalm.config import Config
from megalm.config.lora import LoraConfig
from megalm.config.model import MAY_CHANGE, ModelConfig
from megalm.config.quantization import QuantizationConfig
from megalm.convert.checkpoint import write_checkpoint
from megalm.convert.source import Source, open_source
from megalm.convert.stored import Entry
from megalm.convert.tokenizers import copy_tokenizer
from megalm.errors import UserError
from megalm.lineage.record import model_record, write_made
from megalm.model.quantized import PARTS, part_name


def merge_checkpoints(
    sources: Sequence[str | Path], target: str | Path, weights: Sequence[float] | None = None
) -> dict[str, Any]:
    """Write the average of checkpoints of one model ("model soup", arXiv:2203.05482) as a checkpoint at `target`.

    weights: one for each source, by default all alike; they are divided by their sum. One source alone is copied without
    its optimizer, adapters added to the weights, codes as the weights that they stand for. A tensor at a time is in memory, summed in fp32 at least. Raises
    UserError for checkpoints of different models or vocabularies; then nothing is left at `target`.
    """
    refuse_among_checkpoints(target)
    folders = [find_checkpoint(source) for source in sources]
    shares = _shares(folders, weights)
    configs = [read_config(folder) for folder in folders]
    for folder, config in zip(folders[1:], configs[1:], strict=True):
        _check_same(folders[0], configs[0].model, folder, config.model)
    opened = [open_source(folder, config) for folder, config in zip(folders, configs, strict=True)]
    first, config = folders[0], configs[0]
    base = with_weights(first, config)
    names = list(parameter_names(read_tensors(base), config.model))
    merged = config.model_copy(update={"lora": LoraConfig(), "quantization": QuantizationConfig()})
    with atomic.new_directory(target) as made:
        write_checkpoint(made, merged, [_entry(name, opened, shares) for name in names])
        tokenizer = tokenizer_of(first, config)
        if tokenizer is not None:
            copy_tokenizer(tokenizer, made / "tokenizer")
        how = (
            "adapters merged"
            if len(folders) == 1
            else f"average with weights {[round(s, 6) for s in shares]}"
        )
        write_made(made, how, [model_record("source", folder) for folder in folders])
        write_manifest(made, {})
    return {"sources": [str(folder) for folder in folders], "parameters": config.model.num_parameters()}


def parameter_names(tensors: Mapping[str, TensorInfo], model: ModelConfig) -> Iterator[str]:
    """Our names of the parameters in a checkpoint's table, a layer and an expert each."""
    codes, *others = (part_name(".weight", part).removeprefix(".") for part in PARTS)
    for key, info in tensors.items():
        if key.startswith("optimizer.") or key.endswith(tuple(f".{part}" for part in others)):
            continue
        key = key.replace(f".{codes}", ".weight")
        counts = list(info.shape)
        names = [key]
        if ".layers." in key and not re.search(r"\.layers\.\d+\.", key):
            layers = range(counts.pop(0))
            names = [key.replace(".layers.", f".layers.{layer}.") for layer in layers]
        if ".experts.experts." in key:
            experts = range(model.moe.num_experts)
            names = [n.replace(".experts.experts.", f".experts.{e}.experts.") for n in names for e in experts]
        yield from names


def with_weights(folder: Path, config: Config) -> Path:
    """The checkpoint that holds whole weights: itself, or what its adapters adapt."""
    return find_base(folder, config) if config.lora.rank else folder


def _entry(name: str, sources: Sequence[Source], shares: Sequence[float]) -> Entry:
    outline = sources[0].outline(name)

    def make() -> Tensor:
        if len(sources) == 1:
            return sources[0].read(name)
        parts = [source.read(name) for source in sources]
        wide = [part if part.itemsize > 4 else part.float() for part in parts]
        total = wide[0] * shares[0]
        for part, share in zip(wide[1:], shares[1:], strict=True):
            total += part * share
        return total.to(outline.dtype)

    return Entry(name, tuple(outline.shape), outline.dtype, make)


def _shares(folders: Sequence[Path], weights: Sequence[float] | None) -> list[float]:
    weights = [1.0] * len(folders) if weights is None else list(weights)
    if len(weights) != len(folders):
        raise UserError(f"{len(weights)} weights for {len(folders)} checkpoints: give one for each")
    total = sum(weights)
    if not total > 0 or total == float("inf"):
        raise UserError(
            f"the weights {', '.join(f'{w:g}' for w in weights)} sum to {total:g}: it must be above 0"
        )
    return [weight / total for weight in weights]


def _check_same(first: Path, expected: ModelConfig, other: Path, found: ModelConfig) -> None:
    mine, theirs = (model.model_dump(exclude=MAY_CHANGE) for model in (expected, found))
    for name, value in mine.items():
        if theirs[name] != value:
            raise UserError(
                f"{other} holds a model with {name} {theirs[name]}, {first} one with {value}: they have no average"
            )
