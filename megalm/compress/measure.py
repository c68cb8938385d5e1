"""What a checkpoint costs and how well it predicts: bytes stored and held, tokens a second, perplexity."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megalm.checkpoint.directory import find_checkpoint, read_config
from megalm.checkpoint.metadata import read_tensors
from megalm.compress.text import Text
from megalm.config import Config
from megalm.engine.base import Engine
from megalm.generate.decode import Generator, context_length
from megalm.generate.load import open_model
from megalm.generate.request import GenerationOptions, ModelRequest
from megalm.train.pretrain import NextTokenLoss

NEW_TOKENS, PROMPT_TOKENS, REPEATS = 64, 16, 3


@dataclass(frozen=True)
class Measured:
    """stored_bytes: of the weights in the checkpoint, without the optimizer. memory_bytes: of the weights as they are computed
    with. tokens_per_second: greedy, one sequence. perplexity: exp of the mean cross entropy of the held-out tokens. None: not
    measured."""

    stored_bytes: int
    memory_bytes: int | None = None
    tokens_per_second: float | None = None
    perplexity: float | None = None


def measure(checkpoint: str | Path, dtype: str, held_out: Text | None) -> Measured:
    """Load a checkpoint in this process, in the format `dtype` what is not quantised, and measure it.

    Of a model that is no language model (an encoder, a classifier) the stored bytes alone are known.
    """
    folder = find_checkpoint(checkpoint)
    stored = stored_bytes(folder)
    if not is_language_model(read_config(folder)):
        return Measured(stored)
    engine, config, _ = open_model(ModelRequest(checkpoint=str(folder), dtype=dtype), "gpt")
    speed, found = tokens_per_second(engine, config), None
    if held_out is not None:
        found = perplexity(engine, held_out)
    # last: what was run may have been brought into another order
    return Measured(stored, memory_bytes(engine), speed, found)


def is_language_model(config: Config) -> bool:
    """Whether it continues texts."""
    return config.model.architecture == "gpt" and not config.model.sequence_head.outputs


def stored_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's weights."""
    tensors = read_tensors(folder)
    return sum(
        math.prod(info.shape) * info.dtype.itemsize
        for name, info in tensors.items()
        if not name.startswith("optimizer.")
    )


def memory_bytes(engine: Engine) -> int:
    """Bytes of all parameters and buffers of this process's part of the model; what embedding and output share counts once."""
    held = {
        tensor.data_ptr(): tensor.nbytes
        for chunk in engine.chunks
        for tensor in (*chunk.parameters(), *chunk.buffers())
        if not tensor.is_meta
    }
    return sum(held.values())


def perplexity(engine: Engine, text: Text) -> float:
    """exp of the mean cross entropy of all counted tokens."""
    total = weight = 0.0
    for microbatches in text.batches(engine.layout):
        part, counted = engine.evaluate(microbatches, NextTokenLoss())
        total, weight = total + float(part.sum()), weight + float(counted.sum())
    return math.exp(min(total / max(weight, 1.0), 700.0))


def tokens_per_second(engine: Any, config: Config) -> float:
    """Speed of decoding one sequence: the best of a few runs of up to 64 tokens after a prompt of 16."""
    length = context_length(config)
    prompt = [number % (config.model.vocab_size or 1) for number in range(min(PROMPT_TOKENS, length - 1))]
    count = min(NEW_TOKENS, length - len(prompt))
    # without a tokenizer no token ends the text
    generator = Generator(engine.chunks, engine.layout, length)
    options = GenerationOptions(max_new_tokens=count, greedy=True)
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        generator.generate([prompt], options)
        seconds.append(time.perf_counter() - start)
    return count / min(seconds)
