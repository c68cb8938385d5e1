"""Batches of preferences, a pair or a judged answer a sample, as a pure function of the data, the seed and the sample numbers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megalm.config.preferences import TooLong
from megalm.dataset.answer_rows import UNWANTED, WANTED, AnswerBatch, Answered, AnswerRows, answered
from megalm.dataset.blend import Blend, Source
from megalm.dataset.framing import NO_CLASS, Int64
from megalm.dataset.indexed import IndexedDataset
from megalm.dataset.preference_records import Kind, one_kind
from megalm.dataset.stream import check_ids
from megalm.dataset.values import kind_of_preferences, read_values
from megalm.errors import UserError


class PreferenceStream(Blend):
    """A blend of preference datasets whose samples are documents, in random order, each once an epoch.

    A pair gives two rows, the chosen answer and then the rejected one; a judged answer gives one. The same arguments give the
    same samples on every process, whatever the layout.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        seed: int,
        rows: AnswerRows,
        too_long: TooLong = "drop",
        expected_tokenizer_hash: str | None = None,
        vocab_size: int | None = None,
        mismatched: bool = False,
        reference: Sequence[Path] | None = None,
    ) -> None:
        """Open `sources` (see `Blend`); a budget of tokens counts padding.

        too_long: what becomes of answers that are, with their prompts, too long for a row. mismatched: give each row also as
        the same prompt with the next sample's answer. reference: of each source the file of `reference_cache`, to be there
        when the first batch is asked for. UserError for a source without preferences or without one that fits, and for sources
        of several kinds.
        """
        super().__init__(sources, seed, expected_tokenizer_hash)
        self.rows, self.too_long, self.vocab_size, self.mismatched = rows, too_long, vocab_size, mismatched
        self.kind: Kind = one_kind(
            {kind_of_preferences(dataset.prefix): str(dataset.prefix) for dataset in self.datasets},
            "the data",
        )
        self.rows_per_sample = 2 if self.kind == "pairs" else 1
        self.values = [read_values(dataset) for dataset in self.datasets]
        found = [self._fitting(dataset) for dataset in self.datasets]
        self.documents = [documents for documents, _ in found]
        """Of each source the numbers of the documents that are taken."""
        self.cut = [cut for _, cut in found]
        self._reference_files = reference
        self._reference: list[NDArray[np.float64]] | None = None
        sizes = [len(documents) for documents in self.documents]
        self.share_out([share for _, share in sources], sizes, rows.length * self.rows_per_sample)

    def batch(self, positions: Int64) -> AnswerBatch:
        """Return the samples whose global numbers (from 0) are `positions`; UserError for an id outside the vocabulary."""
        samples_B = np.asarray(positions, np.int64)
        partners = self._located(samples_B + 1) if self.mismatched else None
        return self._of_run(*self._located(samples_B), partners)

    def of_documents(self, source: int, documents: Int64) -> AnswerBatch:
        """Return documents of a source, by their numbers, without what a reference says of them."""
        return self._rows(np.full(len(documents), source), documents, None)

    def describe(self) -> list[str]:
        """Return a line on each source: how many samples it has, and what became of too long ones."""
        return [
            f"{dataset.prefix}: {len(documents)} {self.kind}, {dataset.num_documents - len(documents)} left out as too long "
            f"for samples of {self.rows.length} tokens"
            + (f", {cut} without their prompts' start" if cut else "")
            for dataset, documents, cut in zip(self.datasets, self.documents, self.cut, strict=True)
        ]

    def _located(self, samples_B: Int64) -> tuple[Int64, Int64]:
        """Source and document of each sample."""
        source_B, _, place_B = self.locate(samples_B)
        return source_B, self._numbers(source_B, place_B)

    def _numbers(self, source_B: Int64, place_B: Int64) -> Int64:
        pairs = zip(source_B.tolist(), place_B.tolist(), strict=True)
        return np.array([self.documents[source][place] for source, place in pairs], np.int64)

    def _of_run(
        self, source_B: Int64, document_B: Int64, partners: tuple[Int64, Int64] | None
    ) -> AnswerBatch:
        """Rows with what the reference says of them."""
        batch = self._rows(source_B, document_B, partners)
        if self._reference_files is not None:
            batch.reference_B = self._reference_of(source_B, document_B)
        return batch

    def _rows(self, source_B: Int64, document_B: Int64, partners: tuple[Int64, Int64] | None) -> AnswerBatch:
        samples = list(zip(source_B.tolist(), document_B.tolist(), strict=True))
        rows = [self.rows.cut(row) for sample in samples for row in self._answers(*sample)]
        classes = [one for sample in samples for one in self._classes(*sample)]
        values = [self.values[s][d] for s, d in samples for _ in range(self.rows_per_sample)]
        batch = self.rows.batch(rows, classes, values, self.rows_per_sample)
        datasets = [self.datasets[source] for source, _ in samples for _ in range(self.rows_per_sample)]
        check_ids(batch.tokens_BS, self.vocab_size, datasets)
        check_ids(batch.labels_BS, self.vocab_size, datasets)
        if partners is not None:
            others = zip(*(part.tolist() for part in partners), strict=True)
            answers = [row for sample in others for row in self._answers(*sample)]
            prompts = [row for sample in samples for row in self._answers(*sample)]
            swapped = [self.rows.cut(_joined(*pair)) for pair in zip(prompts, answers, strict=True)]
            batch.mismatched = self.rows.batch(swapped, classes, values, self.rows_per_sample)
        return batch

    def _answers(self, source: int, document: int) -> list[Answered]:
        dataset = self.datasets[source]
        first, last = dataset.document_indices[document : document + 2].tolist()
        return [_sequence(dataset, number) for number in range(first, last)]

    def _classes(self, source: int, document: int) -> list[int]:
        if self.kind == "pairs":
            return [WANTED, UNWANTED]
        unwanted = self.kind == "verdicts" and not self.values[source][document]
        return [UNWANTED if unwanted else WANTED]

    def _reference_of(self, source_B: Int64, document_B: Int64) -> NDArray[np.float64]:
        if self._reference is None:
            assert self._reference_files is not None
            self._reference = [np.load(path, allow_pickle=False) for path in self._reference_files]
        samples = zip(source_B.tolist(), document_B.tolist(), strict=True)
        return np.concatenate([self._reference[source][document] for source, document in samples])

    def _fitting(self, dataset: IndexedDataset) -> tuple[Int64, int]:
        """The documents that are taken, and how many of them lose their prompts' start."""
        if dataset.loss_mask is None:
            raise UserError(f"{dataset.prefix} does not say which tokens are answers; build it again")
        long_Q = np.flatnonzero(dataset.sequence_lengths > self.rows.room)
        long_D = np.unique(np.searchsorted(dataset.document_indices, long_Q, "right") - 1)
        left_out, cut = [], 0
        for document in long_D.tolist():
            first, last = dataset.document_indices[document : document + 2].tolist()
            found = [_sequence(dataset, number) for number in range(first, last)]
            if all(len(row.ids) <= self.rows.room for row in found):
                continue
            if self.too_long == "drop" or not all(map(self.rows.fits, found)):
                left_out.append(document)
            else:
                cut += 1
        taken = np.delete(np.arange(dataset.num_documents), left_out)
        if not len(taken):
            raise UserError(
                f"no answer of {dataset.prefix} fits a sample of {self.rows.length} tokens with its prompt: raise "
                "batch.seq_length, or cut prompts (too_long: cut_prompt)"
            )
        return taken, cut


class EveryPreference(PreferenceStream):
    """Every preference of all sources once, in their order; rows of samples beyond the last one do not count."""

    in_full = True

    def batch(self, positions: Int64) -> AnswerBatch:
        """See `PreferenceStream.batch`."""
        samples_B, count = np.asarray(positions, np.int64), self.samples_before_repeats()
        partners = self._in_order((samples_B + 1) % count) if self.mismatched else None
        batch = self._of_run(*self._in_order(np.where(samples_B < count, samples_B, 0)), partners)
        batch.classes_B[np.repeat(samples_B >= count, self.rows_per_sample)] = NO_CLASS
        return batch

    def samples_before_repeats(self) -> int:
        """How many preferences there are."""
        return int(self.windows.sum())

    def _in_order(self, samples_B: Int64) -> tuple[Int64, Int64]:
        begins = np.concatenate([[0], np.cumsum(self.windows)])
        source_B = np.searchsorted(begins, samples_B, "right") - 1
        return source_B, self._numbers(source_B, samples_B - begins[source_B])


def _sequence(dataset: IndexedDataset, number: int) -> Answered:
    """A sequence up to the end of its answer."""
    assert dataset.loss_mask is not None
    start = int(dataset.sequence_pointers[number]) // dataset.dtype.itemsize
    ids = dataset[number].astype(np.int64)
    return answered(ids, dataset.loss_mask.read(start, len(ids)))


def _joined(prompt: Answered, answer: Answered) -> Answered:
    """The prompt of one with the answer of another."""
    return Answered(np.concatenate([prompt.ids[: prompt.begin], answer.ids[answer.begin :]]), prompt.begin)
