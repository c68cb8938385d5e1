"""From Megatron-LM's checkpoints to ours, and back to its distributed form."""

import re
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
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
from megalm.checkpoint.metadata import read_table
from megalm.config import Config, parse_config
from megalm.config.checks import check
from megalm.config.inference import for_inference
from megalm.config.model import ModelConfig
from megalm.config.schema import ParallelConfig
from megalm.convert.check_megatron import compare_with_library
from megalm.convert.checkpoint import DTYPE_NAMES, entry, write_checkpoint
from megalm.convert.megatron_args import args_of, model_of
from megalm.convert.megatron_ranks import FILE, RankFiles, write_ranks
from megalm.convert.parameters import decoder_parameters, fused_norm_name
from megalm.convert.source import Source, open_source
from megalm.convert.stored import VOCABULARY, Entry, Place, StoredTensors, place_of, write_stored
from megalm.convert.tokenizers import copy_tokenizer
from megalm.convert.torch_files import load_safely
from megalm.errors import UserError
from megalm.lineage.record import model_record, write_made

LATEST = "latest_checkpointed_iteration.txt"
RELEASE = "release"
"""Name of a checkpoint that is no step of a training run; Megatron-LM begins anew from it."""
_LINEAR = re.compile(r"decoder\.layers\.\d+\..*(linear_qkv|linear_proj|linear_fc1|linear_fc2)\.weight$")


def is_megatron_lm(source: Path) -> bool:
    """Whether a directory is a checkpoint of Megatron-LM's, or holds some."""
    return (source / LATEST).is_file() or (source / ".metadata").is_file() or bool(_ranks(source))


def from_megatron_lm(
    source: str | Path,
    target: str | Path,
    vocab_size: int | None = None,
    tokenizer: str | Path | None = None,
    compare: bool = True,
) -> dict[str, Any]:
    """Write a GPT of Megatron-LM's, in either of its forms, as a checkpoint at `target`; a tensor at a time.

    source: what `--save` named (its latest iteration is taken) or one iteration's directory. vocab_size: of the
    tokenizer, without the rows that Megatron-LM pads; by default what its arguments say, and then the padding may be
    part of the vocabulary. tokenizer: copied beside the weights; by default what lies in `tokenizer/` there, where our
    own conversion to it puts one. compare: run Megatron-Core's own model on the same tokens, and tell the difference of the
    logits. Raises UserError for what cannot be read or computed, and where logits differ.
    """
    folder, target = _iteration(Path(source)), Path(target)
    tensors, model, args = _open(folder, vocab_size)
    first = tensors.outline("embedding.word_embeddings.weight")
    if model.vocab_size is not None and len(first) < model.vocab_size:
        raise UserError(
            f"{folder}: the embedding has {len(first)} rows, fewer than the vocabulary {model.vocab_size}"
        )
    config = parse_config(
        {
            "model": model.model_dump(),
            "batch": {"seq_length": model.max_sequence_length},
            "precision": {"dtype": DTYPE_NAMES.get(first.dtype, "fp32")},
        },
        where=str(folder),
    )
    with atomic.new_directory(target) as made:
        write_checkpoint(made, config, [entry(tensors, name) for name in decoder_parameters(model)])
        beside = (place / "tokenizer" for place in (folder, folder.parent))
        if kept := tokenizer or next(filter(Path.is_dir, beside), None):
            copy_tokenizer(Path(kept), made / "tokenizer")
        write_made(
            made, "converted from Megatron-LM's form", [{"role": "source", "path": str(folder.absolute())}]
        )
        write_manifest(made, {})
        compared = compare_with_library(made, args, tensors, model) if compare else {}
    return {"family": "megatron-lm", "parameters": config.model.num_parameters()} | compared


def to_megatron_lm(
    source: str | Path,
    target: str | Path,
    step: int | str | None = None,
    ranks: tuple[int, int] | None = None,
    local: bool = False,
    compare: bool = True,
) -> dict[str, Any]:
    """Write a checkpoint as Megatron-LM's distributed one (`torch_dist`), which it loads under any layout.

    ranks: write its older form instead, a file for each of so many tensor-parallel ranks and pipeline stages. local: name
    parameters as `--transformer-impl local` wants them, not Transformer Engine's layers, which are its default. Rows of the
    vocabulary are padded as `model.make_vocab_size_divisible_by` says, times the tensor-parallel ranks. compare: read back
    what was written into Megatron-Core's own model and tell the difference of the logits. Raises UserError for models that
    Megatron-LM does not compute, or that cannot be cut so, and where logits differ.
    """
    source, target = find_checkpoint(source, step), Path(target)
    config = read_config(source)
    stored = open_source(source, config)
    model = config.model
    assert model.vocab_size is not None
    multiple = model.make_vocab_size_divisible_by * (ranks[0] if ranks else 1)
    padded = -(-model.vocab_size // multiple) * multiple
    args = args_of(model, padded)
    if ranks is not None:
        _check_ranks(config, *ranks)
    args.transformer_impl = "local" if local else "transformer_engine"
    with atomic.new_directory(target) as made:
        folder = made / RELEASE
        if ranks is not None:
            read = lambda name: _padded(entry(stored, name), padded).make()  # noqa: E731
            write_ranks(folder, args, model, read, *ranks, fused_norms=not local)
        else:
            names = list(decoder_parameters(model))
            write_stored(
                folder,
                [_padded(entry(stored, name), padded) for name in names],
                lambda name: _place_to_write(name, model, local),
                _extra_states(names, model, local),
            )
            content = {"args": args, "checkpoint_version": 3.0, "iteration": 0}
            torch.save(content, folder / "common.pt")
        atomic.write_text(made / LATEST, RELEASE)
        tokenizer = tokenizer_of(source, config)
        if tokenizer is not None:
            copy_tokenizer(tokenizer, made / "tokenizer")
        write_made(made, "converted to Megatron-LM's form", [model_record("source", source)])
        compared = {}
        if compare:
            written, found, arguments = _open(folder, model.vocab_size)
            compared = compare_with_library(source, arguments, written, found, stored)
    return {"family": "megatron-lm", "parameters": model.num_parameters()} | compared


def _check_ranks(config: Config, tensor_ranks: int, stages: int) -> None:
    """Raise UserError where the model cannot be cut into equal parts."""
    layout = ParallelConfig(tensor_model_parallel_size=tensor_ranks, pipeline_model_parallel_size=stages)
    try:
        check(for_inference(config, layout, config.precision.dtype))
    except UserError as error:
        raise UserError(f"--tensor-ranks {tensor_ranks} --pipeline-ranks {stages}: {error}") from None


def _iteration(source: Path) -> Path:
    """The directory of one iteration."""
    if not (source / LATEST).is_file():
        return source
    named = (source / LATEST).read_text().strip()
    folder = source / (RELEASE if named == RELEASE else f"iter_{named:0>7}")
    if not folder.is_dir():
        raise UserError(f"{source / LATEST} names {named}, and there is no {folder.name} beside it")
    return folder


def _ranks(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"mp_rank_*/{FILE}"))


def _open(folder: Path, vocab_size: int | None) -> tuple[Source, ModelConfig, Mapping[str, Any]]:
    """What reads the tensors, the model that they are of, and the arguments that say so."""
    if files := _ranks(folder):
        ranks = RankFiles(files)
        args = _arguments(ranks.arguments, files[0])
        ranks.model = model_of(args, str(files[0]), vocab_size)
        return ranks, ranks.model, args
    common = folder / "common.pt"
    if not (folder / ".metadata").is_file():
        raise UserError(f"{folder} is no checkpoint of Megatron-LM: neither mp_rank_* nor .metadata is there")
    content = load_safely(common, "the arguments of a checkpoint of Megatron-LM")
    args = _arguments(content.get("args") if isinstance(content, dict) else None, common)
    model = model_of(args, str(common), vocab_size)
    table = read_table(folder, tensors_alone=False)
    return StoredTensors(folder, table, model, lambda name: _places(name, model)), model, args


def _arguments(found: Any, where: Path) -> Mapping[str, Any]:
    if not isinstance(found, Namespace):
        raise UserError(f"{where}: the arguments of the run (args) are not in it; use another checkpoint")
    return vars(found)


def _places(name: str, model: ModelConfig) -> Iterator[Place]:
    """Where Megatron-LM may keep a parameter: norms fused with the matrix behind or not, layers together or apart."""
    layer = re.match(r"decoder\.layers\.(\d+)", name)
    for spelling in dict.fromkeys((fused_norm_name(name, mlp=True), fused_norm_name(name, mlp=False), name)):
        place = place_of(spelling, model)
        yield place
        if layer and len(place.counts) == 1 and "experts" not in place.key:
            yield Place(spelling, (), ())
        elif layer and len(place.counts) == 2:
            key = place.key.replace("decoder.layers.", f"decoder.layers.{layer[1]}.")
            yield Place(key, place.lead[1:], place.counts[1:])


def _place_to_write(name: str, model: ModelConfig, local: bool) -> Place:
    """Where its layers look for it: those of Transformer Engine keep the norm before experts by itself."""
    layer = re.match(r"decoder\.layers\.(\d+)", name)
    experts = layer is not None and model.moe.is_moe_layer(int(layer[1]))
    return place_of(fused_norm_name(name, mlp=local or not experts), model)


def _extra_states(names: Iterable[str], model: ModelConfig, local: bool) -> list[str]:
    """Objects that Megatron-LM wants beside each matrix of a layer, and Transformer Engine beside attention; for fp8."""
    modules = [name.removesuffix(".weight") for name in names if _LINEAR.search(name)]
    if not local:
        modules += [f"decoder.layers.{n}.self_attention.core_attention" for n in range(model.num_layers)]
    keys = []
    for module in modules:
        place = place_of(module + "._extra_state", model)
        at, of = (
            ".".join(map(str, numbers or (default,)))
            for numbers, default in ((place.lead, 0), (place.counts, 1))
        )
        keys.append(f"{place.key}/shard_{at}_{of}")
    return keys


def _padded(entry: Entry, rows: int) -> Entry:
    """With rows of zeros up to the padded vocabulary."""
    if entry.name not in VOCABULARY or entry.shape[0] == rows:
        return entry

    def make() -> Tensor:
        real = entry.make()
        return torch.cat([real, real.new_zeros(rows - len(real), *real.shape[1:])])

    return Entry(entry.name, (rows, *entry.shape[1:]), entry.dtype, make)
