"""The command `megalm embed`: texts to vectors by an encoder, under any layout."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from megalm import atomic
from megalm.config import Config
from megalm.dataset.framing import Framing
from megalm.engine.base import Engine, MicroBatch
from megalm.errors import UserError
from megalm.generate.batches import in_batches
from megalm.generate.load import open_model
from megalm.generate.request import EmbedRequest
from megalm.tokenizer import Tokenizer


def main(request: EmbedRequest, output: Path | None = None) -> dict[str, Any]:
    """Embed the request's texts; returns their `embeddings`, in order, and how many were `truncated`. Collective.

    output: rank 0 writes them there, as an array (texts, hidden size) in float32 (.npy) or as JSON, a list a text (.json).
    """
    if output is not None and output.suffix not in (".npy", ".json"):
        raise UserError(f"--output {output}: the name must end in .npy or .json")
    engine, config, tokenizer = open_model(request, "bert")
    embedder = Embedder(engine, config, tokenizer)
    ids = tokenizer.encode_batch(request.texts)
    vectors = embedder.embed(ids, request.normalize, request.batch_size)
    if output is not None and engine.layout.rank == 0:
        _write(output, vectors)
    return {"embeddings": vectors.tolist(), "truncated": sum(map(embedder.is_long, ids))}


class Embedder:
    """Turns texts (token ids) into vectors by an encoder: the mean of its hidden states over a text's tokens."""

    def __init__(self, engine: Engine, config: Config, tokenizer: Tokenizer) -> None:
        self.engine = engine
        self.length = _longest(config)
        """Tokens of a text that are read at most, those that frame it among them."""
        framing = Framing.of(config, tokenizer)
        self._framing = replace(framing, length=self.length, keep="start", pooling="mean")

    def is_long(self, ids: Sequence[int]) -> bool:
        """Whether its end is cut off."""
        return self._framing.is_long([np.array(ids, np.int64)])

    def embed(
        self, texts: Sequence[Sequence[int]], normalize: bool, batch_size: int = 32
    ) -> NDArray[np.float32]:
        """The vectors (texts, hidden size), on every rank; normalize: to length 1. Collective."""
        documents = [[np.array(ids, np.int64)] for ids in texts]
        found = in_batches(self.engine, self._framing, documents, batch_size, _encode, _means)
        vectors = np.array(found, np.float32)
        if normalize:
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


def _longest(config: Config) -> int:
    """Tokens that the model takes: the position table's, without one the length that it was trained on."""
    learned = config.model.position_embedding == "learned"
    return config.model.max_sequence_length if learned else config.batch.seq_length


def _encode(model: nn.Module, microbatch: MicroBatch) -> Tensor:
    return model(microbatch.tokens_BS, microbatch.forward_state(), heads=False)


def _means(hidden_SBH: Tensor, microbatch: MicroBatch) -> list[NDArray[np.float32]]:
    """Mean of the hidden states over each row's tokens."""
    wide_BSH = hidden_SBH.transpose(0, 1).to(torch.promote_types(hidden_SBH.dtype, torch.float32))
    real_BS1 = microbatch.loss_mask_BS.to(wide_BSH.dtype)[..., None]
    return list(((wide_BSH * real_BS1).sum(1) / real_BS1.sum(1)).float().cpu().numpy())


def _write(path: Path, vectors: NDArray[np.float32]) -> None:
    if path.suffix == ".json":
        atomic.write_text(path, json.dumps(vectors.tolist()))
        return
    with atomic.open_atomic(path) as file:
        np.save(file, vectors)
