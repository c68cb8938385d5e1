"""Tiny models, batches and engines that the tests of model, engine and layouts share."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megalm.config import Config, parse_config
from megalm.engine.base import Engine, MicroBatch, local_samples, split_samples
from megalm.engine.build import build_engine
from megalm.model.build import Model, build_model
from megalm.parallel.layout import Layout, create_layout

VOCABULARY = 509  # prime: no number of ranks divides it
SEQUENCE = 32
GLOBAL_BATCH, MICRO_BATCH = 8, 2
LR = 1e-3


def tiny_config(preset: str = "llama-tiny", *overrides: str) -> Config:
    """A model of 2 layers, hidden 64, in fp64 unless an override says otherwise."""
    sections: dict[str, Any] = {
        "model": {"preset": preset, "vocab_size": VOCABULARY, "max_sequence_length": SEQUENCE},
        "batch": {"seq_length": SEQUENCE, "micro_batch_size": MICRO_BATCH, "global_batch_size": GLOBAL_BATCH},
        "precision": {"dtype": "fp64"},
    }
    return parse_config(sections, overrides)


def tiny_batch(seed: int, resets: bool = False) -> SimpleNamespace:
    """Numpy arrays as the dataset gives them, some samples with few counted tokens, one with none.

    resets: two or three documents in a window, of positions and segments of their own.
    """
    random = np.random.default_rng(seed)
    window_BT = random.integers(0, VOCABULARY, (GLOBAL_BATCH, SEQUENCE + 1))
    share_B1 = np.linspace(0.0, 1.0, GLOBAL_BATCH)[:, None]
    mask_BS = (random.random((GLOBAL_BATCH, SEQUENCE)) < share_B1) * random.choice(
        [0.5, 1.0], (GLOBAL_BATCH, SEQUENCE)
    )
    positions_BS = np.tile(np.arange(SEQUENCE), (GLOBAL_BATCH, 1))
    segments_BS = None
    if resets:
        begins_BS = np.zeros((GLOBAL_BATCH, SEQUENCE), bool)
        np.put_along_axis(begins_BS, random.integers(1, SEQUENCE, (GLOBAL_BATCH, 2)), True, axis=1)
        segments_BS = begins_BS.cumsum(1)
        positions_BS = positions_BS - np.maximum.accumulate(np.where(begins_BS, positions_BS, 0), axis=1)
    return SimpleNamespace(
        tokens_BS=window_BT[:, :-1].copy(),
        labels_BS=window_BT[:, 1:].copy(),
        loss_mask_BS=mask_BS.astype(np.float32),
        positions_BS=positions_BS,
        segments_BS=segments_BS,
    )


def tiny_microbatches(seed: int, layout: Layout, resets: bool = False) -> list[MicroBatch]:
    """This rank's part of `tiny_batch`."""
    return to_microbatches(tiny_batch(seed, resets), layout, MICRO_BATCH)


def tiny_pairs(seed: int, resets: bool = False) -> SimpleNamespace:
    """Numpy arrays for BERT: rows of 1 to all tokens, a pair without class, rows without masked tokens.

    resets: segments of attention inside the real tokens besides the padding.
    """
    batch = tiny_batch(seed, resets)
    random = np.random.default_rng(seed)
    order_1S = np.arange(SEQUENCE)[None]
    real_BS = order_1S < np.linspace(SEQUENCE, 1, GLOBAL_BATCH).astype(int)[:, None]
    segments_BS = np.zeros_like(batch.tokens_BS) if batch.segments_BS is None else batch.segments_BS
    labels_B = random.integers(0, 2, GLOBAL_BATCH)
    labels_B[random.integers(GLOBAL_BATCH)] = -1
    return SimpleNamespace(
        tokens_BS=batch.tokens_BS,
        labels_BS=batch.labels_BS,
        loss_mask_BS=batch.loss_mask_BS * real_BS,
        segments_BS=np.where(real_BS, segments_BS, -1),
        positions_BS=None,
        token_types_BS=random.integers(0, 2, (GLOBAL_BATCH, SEQUENCE)) * real_BS,
        classes_B=labels_B,
    )


def tiny_labelled(seed: int, resets: bool = False) -> SimpleNamespace:
    """Numpy arrays of whole documents of 1 to all tokens, classes 0 to 2 but one without; heads see one or several tokens."""
    pairs = tiny_pairs(seed, resets)
    random = np.random.default_rng(seed)
    real_BS = pairs.segments_BS >= 0
    some_BS = real_BS & (random.random(real_BS.shape) < 0.3)
    some_BS[:, 0] = True
    classes_B = random.integers(0, 3, GLOBAL_BATCH)
    classes_B[random.integers(GLOBAL_BATCH)] = -1
    return SimpleNamespace(
        **vars(pairs) | {"loss_mask_BS": some_BS.astype(np.float32), "classes_B": classes_B}
    )


def tiny_model(config: Config) -> Model:
    """This process's part of the model, under the layout that the configuration names."""
    return build_model(config, create_layout(config.parallel))


def tiny_engine(config: Config) -> Engine:
    """An engine under the layout that the configuration names."""
    return build_engine(config, create_layout(config.parallel))


def random_tokens(rows: int, length: int = SEQUENCE, seed: int = 0) -> Tensor:
    """Token ids (rows, length)."""
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def to_microbatches(batch: Any, layout: Layout, micro_batch_size: int) -> list[MicroBatch]:
    """This data-parallel rank's microbatches of a whole global batch of numpy arrays."""
    mine = local_samples(len(batch.tokens_BS), layout, micro_batch_size)
    part = type(batch)(**{name: None if a is None else a[mine] for name, a in vars(batch).items()})
    return split_samples(part, layout, micro_batch_size)
