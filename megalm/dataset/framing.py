"""Texts as rows for classification and embedding: framed by special tokens, cut where they are long, padded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from megalm.config import Config
from megalm.errors import UserError
from megalm.tokenizer.base import Tokenizer
from megalm.tokenizer.wordpiece import masking_vocabulary

TEXT, PADDING = 0, -1  # numbers in segments_BS: attention stays among tokens of the same number
NO_CLASS = -1

Int64 = NDArray[np.int64]


@dataclass
class LabelledBatch:
    """Rows of one document each, padded at their right end, under the names of MicroBatch's fields.

    loss_mask_BS is 1 for the tokens whose hidden states the sequence head sees. classes_B: -1 where a row has none.
    segments_BS and token_types_BS: of an encoder.
    """

    tokens_BS: Int64
    labels_BS: Int64
    loss_mask_BS: NDArray[np.float32]
    classes_B: Int64
    segments_BS: Int64 | None = None
    token_types_BS: Int64 | None = None


@dataclass(frozen=True)
class Framing:
    """`[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]` for an encoder, `A end` or `A end B end` for a decoder.

    length: tokens of a row at most. keep: which part of a longer text. pooling: what the head sees, `last`, `mean` or `first`.
    """

    begin: tuple[int, ...]
    end: int
    pad: int
    encoder: bool
    length: int
    keep: Literal["start", "end", "both"]
    pooling: str

    @classmethod
    def of(cls, config: Config, tokenizer: Tokenizer | None) -> "Framing":
        """What the model of a configuration has learned or will learn; UserError without a tokenizer."""
        if tokenizer is None:
            raise UserError("task `classify` needs the tokens around a text: set tokenizer.path")
        encoder = config.model.architecture == "bert"
        words = masking_vocabulary(tokenizer) if encoder else None
        return cls(
            begin=(words.cls_id,) if words else (),
            end=words.sep_id if words else tokenizer.eod_id,
            pad=words.pad_id if words else tokenizer.eod_id,
            encoder=encoder,
            length=config.batch.seq_length,
            keep=config.classify.keep,
            pooling=config.model.pooling,
        )

    def is_long(self, segments: Sequence[Int64]) -> bool:
        """Whether a document of these texts has to be cut."""
        return sum(map(len, segments)) > self.room(len(segments))

    def frame(self, segments: Sequence[Int64]) -> list[Int64]:
        """The document's tokens, a part a text with the special tokens around it, `length` in all at most."""
        rooms = _shares([len(segment) for segment in segments], self.room(len(segments)))
        parts = []
        for number, (segment, room) in enumerate(zip(segments, rooms, strict=True)):
            begin = () if number else self.begin
            parts.append(np.array([*begin, *self._cut(segment, room), self.end], np.int64))
        return parts

    def rows(self, documents: Sequence[Sequence[Int64]], classes: Sequence[int], width: int) -> LabelledBatch:
        """Framed documents (see `frame`) as rows of `width` tokens."""
        shape = len(documents), width
        tokens_BS, types_BS = np.full(shape, self.pad, np.int64), np.zeros(shape, np.int64)
        lengths_B1 = np.zeros((len(documents), 1), np.int64)
        for row, parts in enumerate(documents):
            whole = np.concatenate(parts)
            tokens_BS[row, : len(whole)] = whole
            types_BS[row, len(parts[0]) : len(whole)] = 1
            lengths_B1[row] = len(whole)
        order_1S = np.arange(width)[None]
        real_BS = order_1S < lengths_B1
        seen_BS = {
            "last": order_1S == lengths_B1 - 1,
            "mean": real_BS,
            "first": np.broadcast_to(order_1S == 0, shape),
        }[self.pooling]
        return LabelledBatch(
            tokens_BS=tokens_BS,
            labels_BS=tokens_BS,
            loss_mask_BS=seen_BS.astype(np.float32),
            classes_B=np.array(classes, np.int64),
            # a decoder's tokens see nothing of the padding behind them
            segments_BS=np.where(real_BS, TEXT, PADDING) if self.encoder else None,
            token_types_BS=types_BS if self.encoder else None,
        )

    def room(self, segments: int) -> int:
        """Tokens of so many texts that a row holds; UserError where there is no place for text."""
        room = self.length - len(self.begin) - segments
        if room < segments:
            raise UserError(f"batch.seq_length {self.length} leaves no room for text: raise it")
        return room

    def _cut(self, segment: Int64, room: int) -> Int64:
        if len(segment) <= room:
            return segment
        head = {"start": room, "end": 0, "both": room - room // 2}[self.keep]
        return np.concatenate([segment[:head], segment[len(segment) - (room - head) :]])


def _shares(lengths: list[int], room: int) -> list[int]:
    """How much of the room each text gets: half of it, and what a shorter one leaves."""
    if len(lengths) == 1:
        return [room]
    first, second = lengths
    share = min(first, max(room - room // 2, room - second))
    return [share, room - share]
