"""Prompts with answers as rows of a batch: for a head on the answer, or for the log-probabilities of its tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megalm.config import Config
from megalm.dataset.framing import Int64
from megalm.errors import UserError
from megalm.tokenizer.base import Tokenizer

WIDTH_STEP = 64
UNWANTED, WANTED = 0, 1


@dataclass
class AnswerBatch:
    """Rows of a prompt and an answer each, padded at their right end, under the names of MicroBatch's fields.

    loss_mask_BS: 1 for the labels that are the answer's; with a head instead for the tokens whose hidden states it sees.
    classes_B: 1 for a wanted answer (of a pair the chosen one), 0 for an unwanted one, -1 for a row that does not count.
    values_B: margin or rating. lengths_B: tokens of the answer.
    """

    tokens_BS: Int64
    labels_BS: Int64
    loss_mask_BS: NDArray[np.float32]
    classes_B: Int64
    values_B: NDArray[np.float64]
    lengths_B: Int64
    rows_per_sample: int = 1
    reference_B: NDArray[np.float64] | None = None
    mismatched: "AnswerBatch | None" = None


class Answered(NamedTuple):
    """Ids of a prompt with an answer, which begins at place `begin` and ends with the last id."""

    ids: Int64
    begin: int

    @property
    def length(self) -> int:
        """Tokens of the answer."""
        return len(self.ids) - self.begin


def answered(ids: Int64, marks: NDArray[np.uint8]) -> Answered:
    """What lies up to the last marked token, and where the first one is; there must be one."""
    marked = np.flatnonzero(marks)
    return Answered(ids[: marked[-1] + 1], int(marked[0]))


@dataclass(frozen=True)
class AnswerRows:
    """How answers become rows.

    length: tokens of a row at most. pooling: what the head sees, the answer's `last` token or the `mean` of all; None: there
    is no head, and labels are the next tokens. fixed_width: all rows have `length` tokens; else the longest of a batch,
    rounded up to a multiple of 64.
    """

    length: int
    pad: int
    pooling: str | None
    fixed_width: bool

    @classmethod
    def of(cls, config: Config, tokenizer: Tokenizer | None) -> "AnswerRows":
        """What the model of a configuration needs; UserError without a tokenizer."""
        if tokenizer is None:
            raise UserError(
                f"task `{config.task}` needs the tokenizer of its conversations: set tokenizer.path"
            )
        parallel = config.parallel
        shared = parallel.context_parallel_size * parallel.expert_model_parallel_size > 1
        cut = parallel.sequence_parallel and WIDTH_STEP % parallel.tensor_model_parallel_size
        return cls(
            length=config.batch.seq_length,
            pad=tokenizer.eod_id,
            pooling=config.model.pooling if config.task == "reward" else None,
            # shapes that differ between ranks, cannot be cut or would be compiled again
            fixed_width=shared
            or bool(cut)
            or config.train.compile != "none"
            or config.precision.fp8 != "none",
        )

    @property
    def room(self) -> int:
        """Tokens of prompt and answer that a row holds; the last one may be a label alone."""
        return self.length + (self.pooling is None)

    def fits(self, row: Answered) -> bool:
        """Whether all of the answer, and a token before it, would be in a row that loses the prompt's start."""
        return row.length < self.room

    def cut(self, row: Answered) -> Answered:
        """Without the prompt's start where it is too long."""
        surplus = max(0, len(row.ids) - self.room)
        return Answered(row.ids[surplus:], max(0, row.begin - surplus))

    def batch(
        self, rows: Sequence[Answered], classes: Sequence[int], values: Sequence[float], rows_per_sample: int
    ) -> AnswerBatch:
        """Rows that fit, one below the other."""
        longest = max(len(row.ids) for row in rows) - (self.pooling is None)
        width = self.length if self.fixed_width else min(self.length, -(-longest // WIDTH_STEP) * WIDTH_STEP)
        shape = len(rows), width
        tokens_BS = np.full(shape, self.pad, np.int64)
        labels_BS = tokens_BS if self.pooling else np.full(shape, self.pad, np.int64)
        mask_BS = np.zeros(shape, np.float32)
        for number, (ids, begin) in enumerate(rows):
            if self.pooling:
                tokens_BS[number, : len(ids)] = ids
                mask_BS[number, len(ids) - 1 if self.pooling == "last" else 0 : len(ids)] = 1
            else:
                tokens_BS[number, : len(ids) - 1] = ids[:-1]
                labels_BS[number, : len(ids) - 1] = ids[1:]
                mask_BS[number, begin - 1 : len(ids) - 1] = 1
        return AnswerBatch(
            tokens_BS=tokens_BS,
            labels_BS=labels_BS,
            loss_mask_BS=mask_BS,
            classes_B=np.array(classes, np.int64),
            values_B=np.array(values, np.float64),
            lengths_B=np.array([row.length for row in rows], np.int64),
            rows_per_sample=rows_per_sample,
        )
