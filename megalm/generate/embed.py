"""The command `megalm embed`: texts to vectors by an encoder, under any layout."""

import json
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
from megalm.engine.base import MicroBatch
from megalm.errors import UserError
from megalm.generate.batches import in_batches
from megalm.generate.load import open_model
from megalm.generate.request import EmbedRequest


def main(request: EmbedRequest, output: Path | None = None) -> dict[str, Any]:
    """Embed the request's texts; returns their `embeddings`, in order, and how many were `truncated`. Collective.

    output: rank 0 writes them there, as an array (texts, hidden size) in float32 (.npy) or as JSON, a list a text (.json).
    """
    if output is not None and output.suffix not in (".npy", ".json"):
        raise UserError(f"--output {output}: the name must end in .npy or .json")
    engine, config, tokenizer = open_model(request, "bert")
    framing = replace(Framing.of(config, tokenizer), length=_longest(config), keep="start", pooling="mean")
    documents = [[np.array(ids, np.int64)] for ids in tokenizer.encode_batch(request.texts)]
    vectors = np.array(
        in_batches(engine, framing, documents, request.batch_size, _encode, _means), np.float32
    )
    if request.normalize:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    if output is not None and engine.layout.rank == 0:
        _write(output, vectors)
    return {"embeddings": vectors.tolist(), "truncated": sum(map(framing.is_long, documents))}


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
