"""Opens the model that is to be compressed."""

from dataclasses import dataclass
from pathlib import Path

from megalm.checkpoint.directory import find_checkpoint, read_config
from megalm.checkpoint.metadata import read_tensors
from megalm.config import Config
from megalm.convert.merge import parameter_names, with_weights
from megalm.convert.source import Source, open_source
from megalm.engine.base import Engine
from megalm.errors import UserError
from megalm.generate.load import CLASSIFIER, open_model
from megalm.generate.request import ModelRequest
from megalm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Whole:
    """A checkpoint with whole weights: where it lies, its configuration, its parameters' names, and what reads them."""

    folder: Path
    config: Config
    names: list[str]
    weights: Source


def open_whole(source: str | Path, step: int | str | None = None) -> Whole:
    """Open a run or a checkpoint, adapters added to its weights; UserError where these lie in few bits already."""
    folder = find_checkpoint(source, step)
    config = read_config(folder)
    if config.quantization.method != "none":
        raise UserError(
            f"{folder} holds its linear layers in {config.quantization.method} already: compress the model that it was made of, "
            "and quantise last"
        )
    names = parameter_names(read_tensors(with_weights(folder, config)), config.model)
    return Whole(folder, config, list(names), open_source(folder, config))


def open_calibration_model(whole: Whole, dtype: str) -> tuple[Engine, Config, Tokenizer]:
    """The model in this process, for text to be run through it; UserError where it is no decoder."""
    model = whole.config.model
    if whole.config.lora.rank:
        raise UserError(
            f"{whole.folder} holds adapters; merge them with their model first: megalm merge {whole.folder} DEST"
        )
    if model.architecture != "gpt":
        raise UserError(
            f"{whole.folder} is of model.architecture `{model.architecture}`, and text is run through decoders alone: prune it by "
            "magnitude, or name the layers to drop"
        )
    kind = CLASSIFIER if model.sequence_head.outputs else "gpt"
    return open_model(ModelRequest(checkpoint=str(whole.folder), dtype=dtype), kind)
