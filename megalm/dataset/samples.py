"""Shows training samples as text: what each is made of, document by document."""

from typing import Any

import numpy as np

from megalm.dataset.inspect import check_tokenizer
from megalm.dataset.pack_stream import PackStream
from megalm.dataset.stream import TokenStream
from megalm.tokenizer import Tokenizer


def show_samples(
    stream: TokenStream | PackStream, tokenizer: Tokenizer, first: int = 0, count: int = 1
) -> list[dict[str, Any]]:
    """Return `count` samples from number `first` on, as text with the borders of documents.

    Of each: its source, the tokens that are not padding, the labels that count, and its pieces, of which each is of one
    document: its number, the first of its tokens and how many, its text, and its origin where that is recorded. Raises
    UserError for another tokenizer than a source's.
    """
    samples = []
    for sample in range(first, first + count):
        pieces = stream.pieces(sample)
        dataset = pieces[0].dataset
        check_tokenizer(dataset, tokenizer)
        entries = []
        for piece in pieces:
            entry: dict[str, Any] = {
                "document": piece.document,
                "first": piece.first,
                "tokens": piece.tokens,
                "text": tokenizer.decode(piece.ids().tolist()),
            }
            if dataset.origins is not None:
                entry["origin"] = dataset.origins.origin(piece.document)._asdict()
            entries.append(entry)
        samples.append(
            {
                "sample": sample,
                "source": str(dataset.prefix),
                "tokens": sum(piece.tokens for piece in pieces),
                "counted": int(stream.batch(np.array([sample])).loss_mask_BS.sum()),
                "pieces": entries,
            }
        )
    return samples
