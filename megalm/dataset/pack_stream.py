"""Batches of packed documents as a pure function of the data, the seed and the sample numbers."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from megalm.dataset.blend import Blend, Source
from megalm.dataset.indexed import IndexedDataset
from megalm.dataset.packing import LongDocuments, Packs, one_a_pack, pack_documents
from megalm.dataset.stream import Batch, Piece, check_ids
from megalm.errors import UserError


class PackStream(Blend):
    """A blend of token datasets whose samples are packs of whole documents, each seen by itself.

    The packs of a source follow from its documents' lengths alone, are the same in every epoch and are taken in random
    order, each once an epoch. The same arguments give the same samples on every process, whatever the layout. Opening
    takes time and memory by the number of documents.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        seq_length: int,
        seed: int,
        long_documents: LongDocuments = "cut",
        expected_tokenizer_hash: str | None = None,
        vocab_size: int | None = None,
        one_document: bool = False,
    ) -> None:
        """Open `sources` (see `Blend`) and pack them into samples of `seq_length` labels; `long_documents` says what becomes
        of those with more. With `one_document` each sample holds one alone. A budget of tokens counts padding. UserError as
        for `TokenStream`, and for a source that fills no sample.
        """
        if seq_length < 1:
            raise UserError(f"seq_length is {seq_length}; it must be at least 1")
        super().__init__(sources, seed, expected_tokenizer_hash)
        self.seq_length = seq_length
        self._how = "cut into several" if long_documents == "cut" else "without their end"
        self.vocab_size = vocab_size
        found = (packs_of(dataset, seq_length, long_documents) for dataset in self.datasets)
        self.packs = [one_a_pack(packs) if one_document else packs for packs in found]
        self.share_out([share for _, share in sources], [packs.count for packs in self.packs], seq_length)

    def describe(self) -> list[str]:
        """Return a line on each source: how many packs it has, how full they are, and what is not in them."""
        return [
            f"{dataset.prefix}: {packs.count} packs of {self.seq_length} tokens, {100 * (1 - packs.efficiency):.2f}% padding, "
            f"{packs.dropped} of {dataset.num_documents} documents left out"
            + (f", {packs.cut} {self._how}" if packs.cut else "")
            for dataset, packs in zip(self.datasets, self.packs, strict=True)
        ]

    def batch(self, positions: NDArray[np.int64]) -> Batch:
        """Return the samples whose global numbers (from 0) are `positions`.

        Positions begin at 0 in every piece of a document, `segments_BS` numbers the pieces, padding at the end is one more.
        Labels count but where the source's loss mask says no, and in padding. Raises UserError for an id outside the
        vocabulary.
        """
        samples_B = np.asarray(positions, np.int64)
        shape = len(samples_B), self.seq_length
        batch = Batch(
            tokens_BS=np.zeros(shape, np.int64),
            labels_BS=np.zeros(shape, np.int64),
            loss_mask_BS=np.zeros(shape, np.float32),
            positions_BS=np.zeros(shape, np.int64),
            segments_BS=np.zeros(shape, np.int64),
        )
        source_B, _, pack_B = self.locate(samples_B)
        for row, (source, pack) in enumerate(zip(source_B.tolist(), pack_B.tolist(), strict=True)):
            self._fill(batch, row, source, pack)
        datasets = [self.datasets[source] for source in source_B.tolist()]
        check_ids(batch.tokens_BS, self.vocab_size, datasets)
        check_ids(batch.labels_BS, self.vocab_size, datasets)
        return batch

    def pieces(self, sample: int) -> list[Piece]:
        """Return what the tokens of the sample of this number consist of, without padding."""
        source_B, _, pack_B = self.locate(np.array([sample]))
        source, packs = int(source_B[0]), self.packs[int(source_B[0])]
        here = slice(*packs.borders[pack_B[0] : pack_B[0] + 2].tolist())
        columns = (packs.document_P[here], packs.first_P[here], packs.labels_P[here])
        pieces = zip(*(column.tolist() for column in columns), strict=True)
        return [Piece(self.datasets[source], *piece) for piece in pieces]

    def _fill(self, batch: Batch, row: int, source: int, pack: int) -> None:
        """Write the pieces of a pack, one after another, then padding."""
        assert batch.segments_BS is not None
        dataset, packs = self.datasets[source], self.packs[source]
        here = slice(*packs.borders[pack : pack + 2].tolist())
        labels_P = packs.labels_P[here]
        begins = dataset.document_starts(packs.document_P[here]) + packs.first_P[here]
        stop = 0
        for segment, (begin, count) in enumerate(zip(begins.tolist(), labels_P.tolist(), strict=True)):
            start, stop = stop, stop + count
            tokens = dataset.tokens(begin, count + 1)
            batch.tokens_BS[row, start:stop], batch.labels_BS[row, start:stop] = tokens[:-1], tokens[1:]
            marks = 1 if dataset.loss_mask is None else dataset.loss_mask.read(begin + 1, count)
            batch.loss_mask_BS[row, start:stop] = marks
            batch.positions_BS[row, start:stop] = np.arange(count)
            batch.segments_BS[row, start:stop] = segment
        batch.positions_BS[row, stop:] = np.arange(self.seq_length - stop)
        batch.segments_BS[row, stop:] = len(labels_P)


def packs_of(dataset: IndexedDataset, seq_length: int, long_documents: LongDocuments) -> Packs:
    """Return the packs of a dataset; UserError where there is none."""
    starts = dataset.document_starts(np.arange(dataset.num_documents + 1))
    packs = pack_documents(np.diff(starts), seq_length, long_documents)
    if not packs.count:
        raise UserError(
            f"no document of {dataset.prefix} fits a sample of {seq_length} tokens: cut long ones or raise seq_length"
        )
    return packs
