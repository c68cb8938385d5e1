"""A small model that learns answers by heart."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megalm.evaluate.encode import Pair
from megalm.tokenizer import Tokenizer
from tests.evaluate.small import config_of
from tests.tiny import tiny_engine

STEPS, ENOUGH = 600, 1e-3


def learn(directory: Path, tokenizer: Tokenizer, pairs: Sequence[Pair], open_nats: float = 0.0) -> float:
    """Train until the continuations' mean loss is below `ENOUGH`, and save; returns it. To be called in a world.

    open_nats: what cannot be learned, the sum over continuations whose context others have, too.
    """
    from types import SimpleNamespace

    from megalm.checkpoint import CheckpointWriter
    from megalm.engine.base import split_samples
    from megalm.train.pretrain import NextTokenLoss

    width = max(len(context) + len(continuation) for context, continuation in pairs) - 1
    batch = SimpleNamespace(
        tokens_BS=np.zeros((len(pairs), width), np.int64),
        labels_BS=np.zeros((len(pairs), width), np.int64),
        loss_mask_BS=np.zeros((len(pairs), width), np.float32),
    )
    for row, (context, continuation) in enumerate(pairs):
        ids = np.array(context + continuation)
        batch.tokens_BS[row, : len(ids) - 1], batch.labels_BS[row, : len(ids) - 1] = ids[:-1], ids[1:]
        batch.loss_mask_BS[row, len(context) - 1 : len(ids) - 1] = 1
    sizes = ("model.hidden_size=128", "model.init_method_std=0.02")
    config = config_of(tokenizer.vocab_size, *sizes, "precision.dtype=fp32", "checkpoint.async_save=false")
    engine = tiny_engine(config)
    microbatches = split_samples(batch, engine.layout, len(pairs))
    loss = 1.0
    for _ in range(STEPS):
        loss = engine.step(microbatches, NextTokenLoss(), 2e-3).loss - open_nats / batch.loss_mask_BS.sum()
        if loss < ENOUGH:
            break
    CheckpointWriter(directory, config, engine).save(1, {"step": 1, "counters": engine.counters})
    return loss
