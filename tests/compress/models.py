"""A small random model of Hugging Face, its checkpoint of ours with a tokenizer, and text to run through both."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from megalm.checkpoint import load_weights, read_config
from megalm.compress.text import Text, open_samples
from megalm.convert.run import convert
from megalm.engine.build import build_engine
from megalm.parallel.layout import create_layout
from megalm.tokenizer import train_bpe
from megalm.train.pretrain import NextTokenLoss
from tests.convert.hub import save

VOCABULARY, LENGTH, LAYERS = 290, 24, 4


def make_base(folder: Path, name: str = "llama3", layers: int = LAYERS, **changes: Any) -> None:
    """Write folder/hf, folder/base and folder/text.txt."""
    lines = (f"the end of line {number} and of the hand {number * number}\n" for number in range(120))
    (folder / "text.txt").write_text("".join(lines), encoding="utf-8")
    depth = {"n_layer": layers} if name == "gpt2" else {"num_hidden_layers": layers}
    save(name, folder / "hf", vocab_size=VOCABULARY, **depth, **changes)
    train_bpe([folder / "text.txt"], VOCABULARY, folder / "hf")
    convert(folder / "hf", folder / "base", compare=False)


def calibration(folder: Path, samples: int = 12) -> Any:
    """What opens the text of `make_base` given (configuration, tokenizer)."""

    def open_text(config: Any, tokenizer: Any) -> Text:
        return open_samples([folder / "text.txt"], config, tokenizer, samples, LENGTH)

    return open_text


def tokens(rows: int = 3) -> Tensor:
    return torch.randint(VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(5))


def hub_model(folder: Path, dtype: torch.dtype | None = torch.float32) -> Any:
    """dtype None: as it is stored."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype or "auto", attn_implementation="eager"
    ).eval()


@torch.no_grad()
def hub_logits(model: Any) -> Tensor:
    return model(tokens()).logits


def our_engine(checkpoint: Path, dtype: str = "fp32", tp: int = 1, pp: int = 1) -> Any:
    """The model of a checkpoint under a layout, in `dtype`."""
    config = read_config(checkpoint)
    config.precision.dtype = dtype  # type: ignore[assignment]
    config.parallel.tensor_model_parallel_size, config.parallel.pipeline_model_parallel_size = tp, pp
    engine = build_engine(config, create_layout(config.parallel), train=False)
    load_weights(engine, checkpoint)
    return engine


@torch.no_grad()
def our_logits(checkpoint: Path, dtype: str = "fp32") -> Tensor:
    return our_engine(checkpoint, dtype).model.eval()(tokens())


def loss(checkpoint: Path, folder: Path, dtype: str, tp: int, pp: int) -> float:
    """Mean cross entropy of the text, the same on every rank."""
    from megalm.tokenizer import load_tokenizer

    engine = our_engine(checkpoint, dtype, tp, pp)
    text = calibration(folder, 8)(read_config(checkpoint), load_tokenizer(folder / "base" / "tokenizer"))
    (microbatches,) = text.batches(engine.layout)
    total, weight = engine.evaluate(microbatches, NextTokenLoss())
    return float(total.sum() / weight.sum())
