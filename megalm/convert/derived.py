"""Writes a checkpoint that is made of another one: its parameters, changed on the way, and what lies beside them."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from megalm import atomic
from megalm.checkpoint.directory import tokenizer_of, write_manifest
from megalm.config import Config
from megalm.config.inference import for_inference
from megalm.config.lora import LoraConfig
from megalm.config.quantization import QuantizationConfig
from megalm.config.schema import ParallelConfig
from megalm.convert.checkpoint import write_checkpoint
from megalm.convert.hugging_face import KEPT
from megalm.convert.source import Source
from megalm.convert.stored import Entry
from megalm.convert.tokenizers import copy_tokenizer
from megalm.lineage.record import model_record, write_made


def plain_config(config: Config) -> Config:
    """A copy that keeps the model, its data and its precision, for a model of fewer layers, or of other weights."""
    plain = for_inference(config, ParallelConfig(), config.precision.dtype)
    plain.lora, plain.quantization = LoraConfig(), QuantizationConfig()
    return plain


def write_derived(
    target: str | Path,
    source: Path,
    origin: Config,
    config: Config,
    entries: Iterable[Entry],
    how: str,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write `entries` as a checkpoint at `target`, which appears whole or not at all.

    origin: the configuration of the checkpoint at `source`, whose tokenizer and small files go with it. config: the new
    one's. how: what was done, for the record. texts: further files, by name.
    """
    with atomic.new_directory(target) as folder:
        write_checkpoint(folder, config, list(entries))
        tokenizer = tokenizer_of(source, origin)
        if tokenizer is not None:
            copy_tokenizer(tokenizer, folder / "tokenizer")
        if (source / KEPT).is_dir():
            shutil.copytree(source / KEPT, folder / KEPT)
        for name, text in (texts or {}).items():
            atomic.write_text(folder / name, text)
        write_made(folder, how, [model_record("source", source)])
        write_manifest(folder, {})


def changed(
    source: Source, name: str, change: Callable[[Tensor], Tensor], like: torch.dtype | None = None
) -> Entry:
    """What `change` makes of a parameter of the source, in the format `like`; its shape stays."""
    outline = source.outline(name)
    dtype = like or outline.dtype
    return Entry(name, tuple(outline.shape), dtype, lambda: change(source.read(name)).to(dtype))
