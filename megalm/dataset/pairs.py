"""Samples for BERT: one or two segments of text between special tokens, some tokens hidden."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from megalm.dataset.blend import RingBlend, Source
from megalm.dataset.indexed import IndexedDataset
from megalm.dataset.masking import mask_tokens
from megalm.dataset.order import derive_key, uniform
from megalm.errors import UserError
from megalm.tokenizer.wordpiece import MaskingVocabulary

PADDING, TEXT = -1, 0  # numbers in segments_BS: attention stays among tokens of the same number
NO_CLASS = -1

Int64 = NDArray[np.int64]
Objective = Literal["sop", "nsp"] | None


@dataclass
class PairBatch:
    """Rows `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`, padded at their right end."""

    tokens_BS: Int64
    labels_BS: Int64
    """The tokens before any was hidden."""
    loss_mask_BS: NDArray[np.float32]
    """1 where the token is to be predicted."""
    segments_BS: Int64
    """0 for text, -1 for padding."""
    token_types_BS: Int64
    """1 for B and the [SEP] behind it."""
    classes_B: Int64
    """0 where B follows A; 1 where they are swapped (sop) or B is of another document (nsp); -1 where there is no B."""


@dataclass(frozen=True)
class MaskingSettings:
    """See the configuration's section `mlm`. objective: None for samples of one segment."""

    probability: float = 0.15
    whole_word: bool = True
    objective: Objective = "sop"
    short_probability: float = 0.1


class PairStream(RingBlend):
    """A weighted blend of token datasets as samples for masked language modelling.

    Sample k holds the tokens around a place in the file that is found like a training window's (see `RingBlend`), within one
    document: all of a short document, else as many tokens as a row holds. The same arguments give the same samples on
    every process, whatever the layout; finding one takes O(log documents).
    """

    def __init__(
        self,
        sources: Sequence[Source],
        seq_length: int,
        seed: int,
        vocabulary: MaskingVocabulary,
        settings: MaskingSettings,
        expected_tokenizer_hash: str | None = None,
    ) -> None:
        """See `RingBlend` for `sources`. UserError, too, for whole words without a WordPiece vocabulary, and for too little text."""
        self.room = seq_length - (3 if settings.objective else 2)
        super().__init__(sources, self.room, self.room + 1, seed, expected_tokenizer_hash)
        self.seq_length = seq_length
        self.vocabulary = vocabulary
        self.settings = settings
        if settings.whole_word and vocabulary.continues_V is None:
            raise UserError(
                "mlm.whole_word needs to know the pieces of a word (`##...` of a WordPiece tokenizer): set it to false"
            )
        lonely = [dataset for dataset in self.datasets if dataset.num_documents < 2]
        if settings.objective == "nsp" and lonely:
            raise UserError(
                f"dataset {lonely[0].prefix} has one document, so no segment comes from another: use mlm.sentence_objective sop"
            )

    def batch(self, positions: Int64) -> PairBatch:
        """Return the samples whose global numbers (from 0) are `positions`; UserError for an id outside the vocabulary."""
        samples_B = np.asarray(positions, np.int64)
        start_B, source_B = self.window_starts(samples_B)
        shape, words = (len(samples_B), self.seq_length), self.vocabulary
        batch = PairBatch(
            tokens_BS=np.full(shape, words.pad_id),
            labels_BS=np.full(shape, words.pad_id),
            loss_mask_BS=np.zeros(shape, np.float32),
            segments_BS=np.full(shape, PADDING),
            token_types_BS=np.zeros(shape, np.int64),
            classes_B=np.full(len(samples_B), NO_CLASS),
        )
        columns = zip(samples_B.tolist(), start_B.tolist(), source_B.tolist(), strict=True)
        for row, (sample, start, source) in enumerate(columns):
            first, second, label = self._segments(self.datasets[source], start, sample)
            self._fill(batch, row, first, second, sample)
            batch.classes_B[row] = label
        return batch

    def _fill(self, batch: PairBatch, row: int, first: Int64, second: Int64, sample: int) -> None:
        """Frame the segments, hide tokens and write row `row`."""
        words, settings = self.vocabulary, self.settings
        begin, end = np.array([words.cls_id]), np.array([words.sep_id])
        text_S = np.concatenate([begin, first, end, second, end] if len(second) else [begin, first, end])
        may_S = np.ones(len(text_S), bool)
        may_S[[0, len(first) + 1, -1]] = False
        masked = mask_tokens(
            text_S,
            may_S,
            settings.probability,
            words.vocab_size,
            words.mask_id,
            derive_key("mask", self.seed, sample),
            words.continues_V if settings.whole_word else None,
        )
        here = (row, slice(len(text_S)))
        batch.tokens_BS[here] = masked.tokens_S
        batch.labels_BS[here] = text_S
        batch.loss_mask_BS[here] = masked.chosen_S
        batch.segments_BS[here] = TEXT
        batch.token_types_BS[row, len(first) + 2 : len(text_S)] = 1

    def _segments(self, dataset: IndexedDataset, start: int, sample: int) -> tuple[Int64, Int64, int]:
        """Return A, B and the label of `sample`, whose place in the file is token `start`."""
        chance = uniform(6, derive_key("pair", self.seed, sample)).tolist()
        length = self.room
        if chance[0] < self.settings.short_probability:
            length = 2 + int(chance[1] * (self.room - 1))
        document, begin, end = self._document(dataset, start)
        begin = max(begin, min(start, end - length))
        end = min(end, begin + length)
        text = self._read(dataset, begin, end)
        cuts = self._cuts(dataset, document, begin, text) if self.settings.objective else np.zeros(0, int)
        if not len(cuts):
            return text, text[:0], NO_CLASS
        cut = int(cuts[int(chance[2] * len(cuts))])
        first, second = text[:cut], text[cut:]
        if chance[3] < 0.5:
            return first, second, 0
        if self.settings.objective == "sop":
            return second, first, 1
        other = self._elsewhere(dataset, document, chance[4], len(second))
        return (first, other, 1) if len(other) else (first, second, NO_CLASS)

    def _document(self, dataset: IndexedDataset, token: int) -> tuple[int, int, int]:
        """Return number, begin and end of the document that holds `token`, without the token that ends it."""
        document = int(dataset.document_at(np.array([token]))[0])
        return document, *self._bounds(dataset, document)

    def _bounds(self, dataset: IndexedDataset, document: int) -> tuple[int, int]:
        begin, end = dataset.document_starts(np.array([document, document + 1])).tolist()
        closed = end > begin and dataset.tokens(end - 1, 1)[0] == self.vocabulary.sep_id
        return begin, end - closed

    def _cuts(self, dataset: IndexedDataset, document: int, begin: int, text: Int64) -> Int64:
        """Where B may begin, counted from `begin`: at sentences where the index knows them, else at words."""
        sentences = _sentence_starts(dataset, document) - begin
        inside = sentences[(sentences > 0) & (sentences < len(text))]
        return inside if len(inside) else np.flatnonzero(~self._continues(text[1:])) + 1

    def _elsewhere(self, dataset: IndexedDataset, document: int, chance: float, length: int) -> Int64:
        """Up to `length` tokens of another document, chosen by its share of the tokens; none where it has no text."""
        token = int(chance * dataset.num_tokens)
        other, begin, end = self._document(dataset, token)
        if other == document:
            other = (document + 1) % dataset.num_documents
            begin, end = self._bounds(dataset, other)
            token = begin
        token = max(begin, min(token, end - length))
        sentences = _sentence_starts(dataset, other)
        earlier = sentences[(sentences > begin) & (sentences <= token)]
        start = int(earlier[-1]) if len(earlier) else (begin if len(sentences) > 1 else token)
        text = self._read(dataset, start, min(end, start + length))
        whole = np.flatnonzero(~self._continues(text))  # not amid a word
        return text[whole[0] :] if start > begin and len(whole) else text

    def _continues(self, text: Int64) -> NDArray[np.bool_]:
        known = self.vocabulary.continues_V
        return np.zeros(len(text), bool) if known is None else known[text]

    def _read(self, dataset: IndexedDataset, begin: int, end: int) -> Int64:
        text = dataset.tokens(begin, max(0, end - begin)).astype(np.int64)
        size = self.vocabulary.vocab_size
        if len(text) and not (text.min() >= 0 and text.max() < size):
            wrong = text[(text < 0) | (text >= size)][0]
            raise UserError(
                f"dataset {dataset.prefix} holds the id {wrong}, the tokenizer ends at {size - 1}; build the dataset with it"
            )
        return text


def _sentence_starts(dataset: IndexedDataset, document: int) -> Int64:
    """Token numbers at which the sequences of a document begin: sentences, if it has more than one."""
    first, last = dataset.document_indices[document : document + 2].tolist()
    return dataset.sequence_pointers[first:last] // dataset.dtype.itemsize
