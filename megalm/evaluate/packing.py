"""Puts pairs of a context and a continuation into rows: what continuations have in common is computed once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megalm.evaluate.encode import Ids, Pair

Int64 = NDArray[np.int64]
PADDING, STEM = -1, 0


class Branch(NamedTuple):
    """Tokens that are run behind a stem: a continuation less its last token; `numbers`: the pairs that it is of."""

    ids: Ids
    numbers: list[int]


@dataclass(frozen=True)
class Row:
    """A stem, of one token at least, with branches that all see it and nothing of each other."""

    stem: Ids
    branches: list[Branch]

    @property
    def width(self) -> int:
        """Tokens."""
        return len(self.stem) + sum(len(branch.ids) for branch in self.branches)


def rows_of(pairs: Sequence[Pair], length: int, share: bool) -> list[Row]:
    """Rows of at most `length` tokens, the widest first: what does not fit into the memory shows at once.

    Of pairs that are longer the beginning is left out. share: pairs with the same context are branches of one row; else only those that
    differ in their last token alone are run once.
    """
    stems: dict[Ids, dict[Ids, list[int]]] = {}
    for number, (context, continuation) in enumerate(pairs):
        ids = (context + continuation)[-(length + 1) : -1]
        # where the context's end itself was left out, what is left of the continuation begins with a token to see
        stem = max(1, len(ids) - len(continuation) + 1)
        # a stem of its own where nothing is shared
        key = ids[:stem] if share else ids
        stems.setdefault(key, {}).setdefault(ids[len(key) :], []).append(number)
    rows = [row for stem, branches in stems.items() for row in _fitting(stem, branches, length)]
    return sorted(rows, key=lambda row: (-row.width, row.stem))


def _fitting(stem: Ids, branches: dict[Ids, list[int]], length: int) -> Iterator[Row]:
    room = length - len(stem)
    taken: list[Branch] = []
    for ids, numbers in branches.items():
        if taken and len(ids) > room:
            yield Row(stem, taken)
            room, taken = length - len(stem), []
        taken.append(Branch(ids, numbers))
        room -= len(ids)
    yield Row(stem, taken)


def batches_of(rows: Sequence[Row], size: int) -> list[list[Row]]:
    """Rows one after another in batches of at most `size` branches, a row at least."""
    batches: list[list[Row]] = []
    branches = size
    for row in rows:
        branches += len(row.branches)
        if branches > size:
            batches.append([])
            branches = len(row.branches)
        batches[-1].append(row)
    return batches


@dataclass(frozen=True)
class Batch:
    """Rows as arrays, and what is asked of them.

    arrays: under the names of MicroBatch's fields; segments_BS tells a stem (0), branches (1 ...) and padding (-1) apart where there are
    branches. places_T: places in the flattened (B, S) whose next token is asked for, ascending. query_Q, label_Q: which of these, and the
    token. spans: of each pair, by number, its questions [from, to).
    """

    arrays: SimpleNamespace
    places_T: Int64
    query_Q: Int64
    label_Q: Int64
    spans: list[tuple[int, int, int]]


def batch_of(rows: Sequence[Row], pairs: Sequence[Pair]) -> Batch:
    """Arrays of rows. A stem's end predicts each branch's first token; positions go on behind the stem in every branch."""
    shape = len(rows), max(row.width for row in rows)
    tokens_BS, positions_BS = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    owner_BS = np.full(shape, PADDING, np.int64)
    places: list[int] = []
    labels: list[int] = []
    spans: list[tuple[int, int, int]] = []
    for number, row in enumerate(rows):
        stem, begin = len(row.stem), len(row.stem)
        tokens_BS[number, :stem], positions_BS[number, :stem] = row.stem, range(stem)
        owner_BS[number, :stem] = STEM
        for owner, branch in enumerate(row.branches, start=1):
            end = begin + len(branch.ids)
            tokens_BS[number, begin:end] = branch.ids
            positions_BS[number, begin:end] = range(stem, stem + len(branch.ids))
            owner_BS[number, begin:end] = owner
            seen = [number * shape[1] + place for place in (*range(stem), *range(begin, end))]
            for pair in branch.numbers:
                wanted = pairs[pair].continuation[-len(seen) :]
                spans.append((pair, len(labels), len(labels) + len(wanted)))
                places += seen[-len(wanted) :]
                labels += wanted
            begin = end
    arrays = SimpleNamespace(
        tokens_BS=tokens_BS, labels_BS=tokens_BS, loss_mask_BS=np.ones(shape, np.float32)
    )
    if any(len(row.branches) > 1 for row in rows):
        arrays.positions_BS, arrays.segments_BS = positions_BS, owner_BS
    places_T, query_Q = np.unique(np.array(places, np.int64), return_inverse=True)
    return Batch(arrays, places_T, query_Q, np.array(labels, np.int64), spans)
