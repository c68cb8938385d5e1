"""The command `megalm classify`: labels of texts and their probabilities, under any layout."""

from typing import Any

import numpy as np
from torch import Tensor, nn

from megalm.dataset.framing import NO_CLASS, Framing, Int64
from megalm.engine.base import MicroBatch
from megalm.errors import UserError
from megalm.evaluate.metrics import classification_metrics, confusion_matrix
from megalm.generate.batches import in_batches
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
    probabilities_RC = np.array(
        in_batches(engine, framing, documents, request.batch_size, run_sequence_head, _probabilities)
    )
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


def run_sequence_head(model: nn.Module, microbatch: MicroBatch) -> Tensor:
    """Run the model's stage up to its sequence head: on the last one its outputs (B, outputs)."""
    types = {} if microbatch.token_types_BS is None else {"token_types_BS": microbatch.token_types_BS}
    return model(microbatch.tokens_BS, microbatch.forward_state(), loss_mask=microbatch.loss_mask_BS, **types)


def _probabilities(logits_BC: Tensor, microbatch: MicroBatch) -> list[list[float]]:
    return logits_BC.double().softmax(-1).tolist()
