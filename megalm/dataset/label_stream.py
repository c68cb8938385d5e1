"""Batches of labelled documents, one a sample, as a pure function of the data, the seed and the sample numbers."""

from collections.abc import Sequence

import numpy as np

from megalm.dataset.blend import Blend, Source
from megalm.dataset.framing import NO_CLASS, Framing, Int64, LabelledBatch
from megalm.dataset.labels import read_labels
from megalm.dataset.stream import check_ids
from megalm.errors import UserError


class LabelStream(Blend):
    """A blend of labelled datasets whose samples are documents, in random order, each once an epoch.

    The same arguments give the same samples on every process, whatever the layout.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        seed: int,
        framing: Framing,
        classes: Sequence[str],
        expected_tokenizer_hash: str | None = None,
        vocab_size: int | None = None,
    ) -> None:
        """Open `sources` (see `Blend`); a budget of tokens counts padding. classes: names of the labels in their order.

        UserError for a source without documents or labels, or with labels that are not among `classes`.
        """
        super().__init__(sources, seed, expected_tokenizer_hash)
        self.framing, self.vocab_size = framing, vocab_size
        for dataset in self.datasets:
            if not dataset.num_documents:
                raise UserError(f"dataset {dataset.prefix} has no documents; leave it out")
        self.classes = [read_labels(dataset, classes) for dataset in self.datasets]
        documents = [dataset.num_documents for dataset in self.datasets]
        self.share_out([share for _, share in sources], documents, framing.length)

    def batch(self, positions: Int64) -> LabelledBatch:
        """Return the samples whose global numbers (from 0) are `positions`; UserError for an id outside the vocabulary."""
        source_B, _, document_B = self.locate(np.asarray(positions, np.int64))
        return self._rows(source_B, document_B)

    def _rows(self, source_B: Int64, document_B: Int64) -> LabelledBatch:
        pairs = list(zip(source_B.tolist(), document_B.tolist(), strict=True))
        documents = [self.framing.frame(self._texts(*pair)) for pair in pairs]
        classes = [int(self.classes[source][document]) for source, document in pairs]
        batch = self.framing.rows(documents, classes, self.framing.length)
        check_ids(batch.tokens_BS, self.vocab_size, [self.datasets[source] for source, _ in pairs])
        return batch

    def _texts(self, source: int, document: int) -> list[Int64]:
        """The document's text, or both of a pair."""
        dataset = self.datasets[source]
        first, last = dataset.document_indices[document : document + 2].tolist()
        return [dataset[sequence].astype(np.int64) for sequence in range(first, last)]

    def describe(self) -> list[str]:
        """Return a line on each source: how many documents it has, and how many of them are cut."""
        return [
            f"{dataset.prefix}: {dataset.num_documents} documents, {self._long(source)} of them longer than a sample of "
            f"{self.framing.length} tokens, which keeps their {_KEPT[self.framing.keep]}"
            for source, dataset in enumerate(self.datasets)
        ]

    def _long(self, source: int) -> int:
        """How many documents of a source are cut, from the index alone: there may be millions."""
        dataset = self.datasets[source]
        ends = np.concatenate([[0], np.cumsum(dataset.sequence_lengths, dtype=np.int64)])
        tokens_D, texts_D = np.diff(ends[dataset.document_indices]), np.diff(dataset.document_indices)
        return sum(
            int((tokens_D[texts_D == texts] > self.framing.room(texts)).sum())
            for texts in np.unique(texts_D).tolist()
        )


_KEPT = {"start": "start", "end": "end", "both": "start and end"}


class EveryDocument(LabelStream):
    """Every document of all sources once, in their order; samples beyond the last one have no class."""

    in_full = True

    def batch(self, positions: Int64) -> LabelledBatch:
        """See `LabelStream.batch`."""
        samples_B = np.asarray(positions, np.int64)
        begins = np.concatenate([[0], np.cumsum(self.windows)])
        inside_B = samples_B < begins[-1]
        known_B = np.where(inside_B, samples_B, 0)
        source_B = np.searchsorted(begins, known_B, "right") - 1
        batch = self._rows(source_B, known_B - begins[source_B])
        batch.classes_B[~inside_B] = NO_CLASS
        return batch

    def samples_before_repeats(self) -> int:
        """How many documents there are."""
        return int(self.windows.sum())
