"""Which of two texts a masked model finds likelier: the pseudo-log-likelihood of what both share (arXiv:2010.00133, section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from megalm.checkpoint.directory import find_checkpoint, fingerprint
from megalm.config import Config
from megalm.dataset.framing import PADDING, TEXT, Int64, LabelledBatch
from megalm.engine.base import Engine, MicroBatch
from megalm.evaluate.answers import FILE_NAME, Answers
from megalm.evaluate.encode import Encoder, Ids, Likelihood
from megalm.evaluate.model import Advance
from megalm.evaluate.request import EvalRequest
from megalm.generate.batches import in_batches
from megalm.generate.load import open_model
from megalm.tokenizer import Tokenizer
from megalm.tokenizer.wordpiece import masking_vocabulary

TEXTS_AT_ONCE = 64
"""Texts whose scores are computed before they are kept."""


class MaskedModel:
    """An encoder as evaluation asks it. All ranks make the same calls. asked, known, answers: as those of `AskedModel`."""

    def __init__(
        self, engine: Engine, config: Config, tokenizer: Tokenizer, answers: Answers, batch_size: int
    ) -> None:
        self.engine, self.encoder, self.answers, self.batch_size = (
            engine,
            Encoder(tokenizer),
            answers,
            batch_size,
        )
        learned = config.model.position_embedding == "learned"
        self.length = config.model.max_sequence_length if learned else config.batch.seq_length
        self.asked = self.known = 0
        self.rank = engine.layout.rank
        self._rows = _Rows(tokenizer)

    def pair(self, first: str, second: str) -> tuple[tuple[Ids, Ids], tuple[Ids, Ids]]:
        """Of both texts their ids, cut where they are longer than the model, and the places of the tokens that they share."""
        room = self.length - 2
        one, other = (tuple(self.encoder.tokenizer.encode(text)[:room]) for text in (first, second))
        blocks = SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks()
        shared = [(block.a + i, block.b + i) for block in blocks for i in range(block.size)]
        return (one, tuple(a for a, _ in shared)), (other, tuple(b for _, b in shared))

    def likelihoods(self, texts: Sequence[tuple[Ids, Ids]], advance: Advance) -> list[Likelihood]:
        """Of each text the sum over its `places` of log p of the token there, that one alone being masked. Collective."""
        keys = [self.answers.key("masked", *text) for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if self.answers.get(key) is None}
        self.asked += len(keys)
        self.known += len(keys) - len(new)
        advance(len(keys) - len(new))
        for start in range(0, len(new), TEXTS_AT_ONCE):
            part = list(new)[start : start + TEXTS_AT_ONCE]
            rows = [(key, place) for key in part for place in new[key][1]]
            documents = [
                [np.array(new[key][0], np.int64), np.array([place], np.int64)] for key, place in rows
            ]
            found = dict.fromkeys(part, 0.0)
            logprobs = in_batches(self.engine, self._rows, documents, self.batch_size, _at_masks, _listed)
            for (key, _), logprob in zip(rows, logprobs, strict=True):
                found[key] += logprob
            self.answers.add({key: [value, False] for key, value in found.items()})
            advance(len(part))
        return [Likelihood(*(self.answers.get(key) or ())) for key in keys]


def open_masked(request: EvalRequest) -> tuple[MaskedModel, dict[str, Any]]:
    """Load the encoder, and tell what it is. Collective."""
    checkpoint = find_checkpoint(request.checkpoint, request.step)
    engine, config, tokenizer = open_model(request, "bert")
    mark = fingerprint(checkpoint, request.dtype)
    answers = Answers(request.output / FILE_NAME, mark)
    told = {"checkpoint": str(checkpoint.resolve()), "fingerprint": mark, "dtype": request.dtype}
    return MaskedModel(engine, config, tokenizer, answers, request.batch_size), told


@dataclass(frozen=True)
class _Rows:
    """`[CLS] text [SEP]` with one token masked; a document is the text's ids and the place of that token."""

    tokenizer: Tokenizer

    def frame(self, segments: Sequence[Int64]) -> Sequence[Int64]:
        """The row's tokens, the masked one as it is, and its place."""
        words = masking_vocabulary(self.tokenizer)
        ids, place = segments
        return [np.array([words.cls_id, *ids, words.sep_id], np.int64), place + 1]

    def rows(self, documents: Sequence[Sequence[Int64]], classes: Sequence[int], width: int) -> LabelledBatch:
        """Rows of framed documents; width: of the longest one with its place. loss_mask_BS is 1 at the masked token."""
        words = masking_vocabulary(self.tokenizer)
        shape = len(documents), width - 1
        tokens_BS, labels_BS = np.full(shape, words.pad_id, np.int64), np.zeros(shape, np.int64)
        segments_BS, mask_BS = np.full(shape, PADDING, np.int64), np.zeros(shape, np.float32)
        for row, (ids, (place,)) in enumerate(documents):
            tokens_BS[row, : len(ids)], segments_BS[row, : len(ids)] = ids, TEXT
            labels_BS[row, place], mask_BS[row, place] = ids[place], 1
            tokens_BS[row, place] = words.mask_id
        return LabelledBatch(
            tokens_BS=tokens_BS,
            labels_BS=labels_BS,
            loss_mask_BS=mask_BS,
            classes_B=np.array(classes, np.int64),
            segments_BS=segments_BS,
            token_types_BS=np.zeros(shape, np.int64),
        )


def _at_masks(model: nn.Module, microbatch: MicroBatch) -> Tensor:
    """On the last stage log p (B) of each row's masked token."""
    output = model(microbatch.tokens_BS, microbatch.forward_state(), microbatch.token_types_BS)
    if not isinstance(output, tuple):
        return output
    masked_BS = microbatch.loss_mask_BS > 0
    logits_BV = output[0][masked_BS]
    logprobs_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32)).log_softmax(-1)
    return logprobs_BV.gather(1, microbatch.labels_BS[masked_BS][:, None])[:, 0]


def _listed(logprobs_B: Tensor, microbatch: MicroBatch) -> list[float]:
    return logprobs_B.tolist()
