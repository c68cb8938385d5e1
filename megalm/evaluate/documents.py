"""Draws places in the documents of a file of tokens: what is shown of each, and what follows."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from megalm.dataset.indexed import IndexedDataset
from megalm.dataset.sidecar import read_sidecar
from megalm.errors import UserError
from megalm.evaluate.question import Question
from megalm.evaluate.sections import Memorization
from megalm.tokenizer import Tokenizer

Ids = tuple[int, ...]


def places(prefix: Path, wanted: Memorization, count: int, seed: str) -> list[tuple[str, Ids]]:
    """Of `count` documents at most, each long enough: where it stands, and `wanted.prefix + wanted.continuation` tokens of it in a row.

    Documents are drawn without putting back, the place in each alike, from `seed`; the token that ends a document is not among them.
    UserError where no document is long enough.
    """
    dataset = IndexedDataset(prefix)
    length = wanted.prefix + wanted.continuation
    found = []
    for document in _shuffled(dataset.num_documents, seed):
        begin, end = dataset.document_starts(np.array([document, document + 1])).tolist()
        room = end - 1 - begin - length
        if room < 0:
            continue
        start = begin + random.Random(f"{seed} {document}").randint(0, room)
        found.append((f"{prefix} document {document}", tuple(dataset.tokens(start, length).tolist())))
        if len(found) == count:
            break
    if not found:
        raise UserError(
            f"{prefix} holds no document of {length + 1} tokens; lower memorization.prefix or memorization.continuation"
        )
    return found


def check_tokenizer(questions: Sequence[Question], tokenizer: Tokenizer) -> None:
    """Raise UserError where the ids of documents are another tokenizer's, or above its vocabulary."""
    for question in questions:
        if question.ids is None:
            continue
        if question.tokenizer not in (None, tokenizer.hash):
            raise UserError(
                f"{question.where}: its tokens are not of the model's tokenizer; build it with that one"
            )
        if (most := max(map(max, question.ids))) >= tokenizer.vocab_size:
            raise UserError(
                f"{question.where} holds the id {most}, and the model's vocabulary ends at {tokenizer.vocab_size - 1}; build it "
                "with the model's tokenizer"
            )


def tokenizer_of(prefix: Path) -> str | None:
    """The hash of the tokenizer that a file's ids are of; None where it is not recorded."""
    return (read_sidecar(prefix) or {}).get("tokenizer_hash")


def _shuffled(count: int, seed: str) -> Iterator[int]:
    """All numbers below `count` in an order drawn from `seed`, without a list of them."""
    drawn: set[int] = set()
    source = random.Random(seed)
    while 2 * len(drawn) < count:
        number = source.randrange(count)
        if number not in drawn:
            drawn.add(number)
            yield number
    rest = [number for number in range(count) if number not in drawn]
    yield from source.sample(rest, len(rest))
