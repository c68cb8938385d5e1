"""The command `megalm score`: rewards of answers by a reward model, under any layout."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from megalm.dataset.answer_rows import AnswerBatch, Answered, AnswerRows, answered
from megalm.dataset.chat import encode
from megalm.dataset.framing import Int64
from megalm.engine.base import MicroBatch
from megalm.errors import UserError
from megalm.generate.batches import in_batches
from megalm.generate.classify import run_sequence_head
from megalm.generate.load import REWARD_MODEL, open_model
from megalm.generate.request import ScoreRequest
from megalm.generate.tokenizing import trained_template
from megalm.tokenizer.conversations import BadRecord, Conversation


def main(request: ScoreRequest) -> dict[str, Any]:
    """Score the answers of the request's records. Collective; every rank returns the same.

    `scores`: of each record in order its `reward`, or of a pair `chosen_reward` and `rejected_reward`. `truncated`: how many
    answers were scored without the start of their prompts. `accuracy`, where there are pairs: see `reward_figures`.
    """
    engine, config, tokenizer = open_model(request, REWARD_MODEL)
    template = trained_template(config, tokenizer, request.chat_template)
    framing = AnswerFraming(AnswerRows.of(config, tokenizer))
    documents = []
    for record in request.records:
        for messages in record.conversations:
            try:
                ids, mask = encode(Conversation(messages), template, "last")
            except BadRecord as error:
                raise UserError(str(error)) from None
            row = answered(np.array(ids, np.int64), np.array(mask, np.uint8))
            documents.append([row.ids[: row.begin], row.ids[row.begin :]])
    truncated = sum(sum(map(len, document)) > framing.answers.room for document in documents)
    rewards = iter(in_batches(engine, framing, documents, request.batch_size, run_sequence_head, _rewards))
    scores = [
        {"chosen_reward": next(rewards), "rejected_reward": next(rewards)}
        if record.is_pair
        else {"reward": next(rewards)}
        for record in request.records
    ]
    result: dict[str, Any] = {"scores": scores, "truncated": truncated}
    ahead = [s["chosen_reward"] - s["rejected_reward"] for s in scores if "chosen_reward" in s]
    if ahead:
        result["pairs"] = len(ahead)
        result["accuracy"] = float(np.mean([0.5 * (1 + np.sign(margin)) for margin in ahead]))
    return result


@dataclass(frozen=True)
class AnswerFraming:
    """Documents of a prompt and an answer as rows (see `generate.batches.Rows`)."""

    answers: AnswerRows

    def frame(self, segments: Sequence[Int64]) -> Sequence[Int64]:
        """As they are: a chat template has written them."""
        return segments

    def rows(self, documents: Sequence[Sequence[Int64]], classes: Sequence[int], width: int) -> AnswerBatch:
        """A row a document, without the prompt's start where it is too long."""
        rows = [
            self.answers.cut(Answered(np.concatenate(segments), len(segments[0]))) for segments in documents
        ]
        return self.answers.batch(rows, classes, [0.0] * len(rows), 1)


def _rewards(rewards_B1: Tensor, microbatch: MicroBatch) -> list[float]:
    return rewards_B1[:, 0].double().tolist()
