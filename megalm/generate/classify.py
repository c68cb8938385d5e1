"""The command `megalm classify`: labels of texts and their probabilities, under any layout."""

from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from megalm.config import Config
from megalm.dataset.framing import NO_CLASS, Framing, Int64
from megalm.engine.base import Engine, MicroBatch, split_samples
from megalm.errors import UserError
from megalm.evaluate.metrics import classification_metrics, confusion_matrix
from megalm.generate.load import CLASSIFIER, open_model
from megalm.generate.request import ClassifyRequest
from megalm.tokenizer import Tokenizer


def main(request: ClassifyRequest) -> dict[str, Any]:
    """Predict the labels of the request's texts. Collective; every rank returns the same.

    `predictions`: of each text in order its label and the probability of every label. `labels`: their names. `truncated`:
    how many texts were cut to the model's length. `measures`, where labels are known: how many, and accuracy and F1 over
    those texts.
    """
    engine, config, tokenizer = open_model(request, CLASSIFIER)
    labels = config.classify.labels
    truth = _truth(request.truth, labels)
    framing = Framing.of(config, tokenizer)
    documents = _tokenized(request.texts, tokenizer)
    truncated = sum(framing.is_long(document) for document in documents)
    probabilities_RC = predict(engine, config, framing, documents, request.batch_size)
    called_R = probabilities_RC.argmax(1)
    predictions = [
        {"label": labels[called], "probabilities": dict(zip(labels, row.tolist(), strict=True))}
        for called, row in zip(called_R, probabilities_RC, strict=True)
    ]
    result = {"predictions": predictions, "labels": labels, "truncated": truncated}
    if known := [row for row, label in enumerate(truth) if label != NO_CLASS]:
        matrix_CC = confusion_matrix(np.array(truth)[known], called_R[known], len(labels))
        result["measures"] = {"texts": len(known), **classification_metrics(matrix_CC, labels)}
    return result


def predict(
    engine: Engine, config: Config, framing: Framing, documents: list[list[Int64]], batch_size: int
) -> NDArray[np.float64]:
    """Probability of each class for each document (a text's ids, or both of a pair), [documents, classes], on every rank.

    Copies of the model share the documents, texts of like length go together. Collective.
    """
    layout = engine.layout
    framed = [framing.frame(document) for document in documents]
    lengths = [sum(map(len, parts)) for parts in framed]
    order = sorted(range(len(framed)), key=lengths.__getitem__)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    mine: list[tuple[int, list[float]]] = []
    for batch in batches[layout.dp_rank :: layout.dp_size]:
        rows = framing.rows([framed[i] for i in batch], [NO_CLASS] * len(batch), lengths[batch[-1]])
        (microbatch,) = split_samples(rows, layout, len(batch))
        for logits_BC in engine.forward([microbatch], _logits, _keep):
            mine += zip(batch, logits_BC.double().softmax(-1).tolist(), strict=True)
    if layout.tp_rank:
        mine = []
    parts: list[list[tuple[int, list[float]]]] = [[] for _ in range(layout.world_size)]
    dist.all_gather_object(parts, mine)
    found = dict(pair for part in parts for pair in part)
    return np.array([found[row] for row in range(len(documents))])


def _tokenized(texts: list[tuple[str, ...]], tokenizer: Tokenizer) -> list[list[Int64]]:
    """The ids of each text, stripped as `build_labelled` does it."""
    flat = tokenizer.encode_batch([text.strip() for pair in texts for text in pair])
    ids = iter(np.array(row, np.int64) for row in flat)
    return [[next(ids) for _ in pair] for pair in texts]


def _truth(given: list[str | None], labels: list[str]) -> list[int]:
    unknown = sorted({label for label in given if label is not None and label not in labels})
    if unknown:
        raise UserError(
            f"{len(unknown)} labels are not among the model's ({', '.join(labels)}), such as {unknown[0]!r}: "
            "leave --label-key out, or mend them"
        )
    return [NO_CLASS if label is None else labels.index(label) for label in given]


def _logits(model: nn.Module, microbatch: MicroBatch) -> Tensor:
    types = {} if microbatch.token_types_BS is None else {"token_types_BS": microbatch.token_types_BS}
    return model(microbatch.tokens_BS, microbatch.forward_state(), loss_mask=microbatch.loss_mask_BS, **types)


def _keep(logits_BC: Tensor, microbatch: MicroBatch) -> Tensor:
    return logits_BC.cpu()
