"""The command `megalm embed`: texts to vectors by an encoder, under any layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from megalm import atomic
from megalm.config import Config
from megalm.engine.base import Engine, MicroBatch
from megalm.errors import UserError
from megalm.generate.load import open_model
from megalm.generate.request import EmbedRequest
from megalm.tokenizer import Tokenizer
from megalm.tokenizer.wordpiece import MaskingVocabulary, masking_vocabulary

PADDING = -1


def main(request: EmbedRequest, output: Path | None = None) -> dict[str, Any]:
    """Embed the request's texts; returns their `embeddings`, in order, and how many were `truncated`. Collective.

    output: rank 0 writes them there, as an array (texts, hidden size) in float32 (.npy) or as JSON, a list a text (.json).
    """
    if output is not None and output.suffix not in (".npy", ".json"):
        raise UserError(f"--output {output}: the name must end in .npy or .json")
    engine, config, tokenizer = open_model(request, "bert")
    rows = frame(request.texts, tokenizer, _longest(config))
    truncated = sum(cut for _, cut in rows)
    ids = [row for row, _ in rows]
    vectors = embed(engine, ids, masking_vocabulary(tokenizer), request.normalize, request.batch_size)
    if output is not None and engine.layout.rank == 0:
        _write(output, vectors)
    return {"embeddings": vectors.tolist(), "truncated": truncated}


def frame(texts: list[str], tokenizer: Tokenizer, longest: int) -> list[tuple[list[int], bool]]:
    """The ids `[CLS] text [SEP]` of each text, `longest` at most, and whether the text had to be cut."""
    words = masking_vocabulary(tokenizer)
    room = longest - 2
    return [
        ([words.cls_id, *ids[:room], words.sep_id], len(ids) > room) for ids in tokenizer.encode_batch(texts)
    ]


def embed(
    engine: Engine,
    rows: list[list[int]],
    vocabulary: MaskingVocabulary,
    normalize: bool = True,
    batch_size: int = 32,
) -> NDArray[np.float32]:
    """Mean of the last layer's hidden states over each row's tokens, float32 (rows, hidden size), on every rank.

    normalize: divide each by its Euclidean length. Copies of the model share the rows. Collective.
    """
    layout = engine.layout
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # like lengths together: little padding
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    mine: list[tuple[int, Tensor]] = []
    for batch in batches[layout.dp_rank :: layout.dp_size]:
        microbatch = _pad([rows[i] for i in batch], vocabulary.pad_id, layout.device)
        for means_BH in engine.forward([microbatch], _encode, _mean):
            mine += zip(batch, means_BH.float().cpu(), strict=True)
    if layout.tp_rank:
        mine = []
    parts: list[list[tuple[int, Tensor]]] = [[] for _ in range(layout.world_size)]
    dist.all_gather_object(parts, mine)
    vectors = torch.stack([vector for _, vector in sorted((p for part in parts for p in part), key=_number)])
    if normalize:
        vectors = nn.functional.normalize(vectors, dim=-1)
    return vectors.numpy()


def _number(part: tuple[int, Tensor]) -> int:
    return part[0]


def _longest(config: Config) -> int:
    """Tokens that the model takes: the position table's, without one the length that it was trained on."""
    learned = config.model.position_embedding == "learned"
    return config.model.max_sequence_length if learned else config.batch.seq_length


def _pad(rows: list[list[int]], pad_id: int, device: torch.device) -> MicroBatch:
    longest = max(map(len, rows))
    tokens_BS = torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows], device=device)
    lengths_B1 = torch.tensor([len(row) for row in rows], device=device)[:, None]
    real_BS = torch.arange(longest, device=device) < lengths_B1
    return MicroBatch(
        tokens_BS=tokens_BS,
        labels_BS=tokens_BS,
        loss_mask_BS=real_BS.float(),
        segments_BS=torch.where(real_BS, 0, PADDING),
    )


def _encode(model: nn.Module, microbatch: MicroBatch) -> Tensor:
    return model(microbatch.tokens_BS, microbatch.forward_state(), heads=False)


def _mean(hidden_SBH: Tensor, microbatch: MicroBatch) -> Tensor:
    wide_BSH = hidden_SBH.transpose(0, 1).to(torch.promote_types(hidden_SBH.dtype, torch.float32))
    real_BS1 = microbatch.loss_mask_BS.to(wide_BSH.dtype)[..., None]
    return (wide_BSH * real_BS1).sum(1) / real_BS1.sum(1)


def _write(path: Path, vectors: NDArray[np.float32]) -> None:
    if path.suffix == ".json":
        atomic.write_text(path, json.dumps(vectors.tolist()))
        return
    with atomic.open_atomic(path) as file:
        np.save(file, vectors)
