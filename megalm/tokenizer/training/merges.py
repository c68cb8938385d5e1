"""Learns the merges of byte pair encoding (Sennrich et al. 2016) from counted words."""

import heapq
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megalm.tokenizer.json_pieces import BYTE_CHARACTERS

Ties = Literal["ids", "bytes"]
"""Which of equally frequent pairs is merged first: the one of smaller ids, or the one of greater bytes."""

BYTES = 256
BOUNDARY = -1
INSIDE = -2
ROOM = 1024
SLACK = 20_000
"""Pairs followed beyond those that are sure to be needed."""


class Merge(NamedTuple):
    """Two tokens that become one; ids into `MergeLearner.tokens`."""

    left: int
    right: int


class MergeLearner:
    """Finds the most frequent pair of neighbouring tokens, joins it everywhere, and goes on.

    All words lie in one array `_cells`, a boundary before, between and after them. A token's first cell holds its id
    and its last one, unless it is the first, -1 - (its number of cells), so that the neighbours on both sides are found
    without a list of links. Only pairs at least as frequent as a threshold are followed, with the places where they
    were made; the others can only become rarer, for a pair arises where its younger token does and nowhere else. When
    none is left, the threshold falls and the cells are read again. Counts are 64-bit.

    Two pairs never give one spelling: the inside of a token was merged as if it stood alone, and so in one way only.
    """

    def __init__(
        self,
        cells: NDArray[np.int32],
        weights: NDArray[np.int64],
        tokens: Sequence[str],
        join: Callable[[str, str], str] = str.__add__,
        forbidden: Sequence[str] = (),
        ties: Ties = "ids",
    ) -> None:
        """Take words as ids and `BOUNDARY`, which also begins and ends the array.

        weights: for each word in turn, how often it occurs. tokens: what the ids are spelled as. join: spells a merged
        pair. forbidden: spellings that no merge may make. ties="bytes"
        wants tokens spelled as in GPT-2, a character a byte.
        """
        self.tokens = list(tokens)
        self._join = join
        self._forbidden = frozenset(forbidden)
        self._rank: Callable[[int], Any] = self._rank_by_bytes if ties == "bytes" else int
        self._cells = cells
        self._weights = weights
        place = np.int32 if len(cells) < 1 << 31 else np.int64
        self._word_of = (np.cumsum(cells == BOUNDARY, dtype=place) - 1).astype(np.int32)
        self._place = place
        self._lengths = np.ones(len(self.tokens) + ROOM, np.int64)
        self._followed: dict[int, NDArray[Any]] = {}
        self._queue: list[tuple[int, Any, int]] = []
        self._threshold = 0

    def learn(
        self, count: int, min_count: int = 1, advance: Callable[[int], Any] = lambda _: None
    ) -> list[Merge]:
        """Return the merges that make `count` new tokens, fewer where no pair occurs `min_count` times any more.

        advance: told 1 for each new token.
        """
        lowest = max(min_count, 1)
        merges: list[Merge] = []
        self._follow_frequent(count, lowest)
        while len(merges) < count:
            pair = self._most_frequent()
            if pair is not None:
                merges.append(self._merge(pair))
                advance(1)
            elif self._threshold > lowest:
                self._follow_frequent(count - len(merges), lowest)
            else:
                break
        return merges

    def _most_frequent(self) -> int | None:
        """Take the pair to merge next out of the queue; None where no followed pair is left.

        A count in the queue may have been overtaken by merges of neighbours; then it is an upper bound, and the pair
        goes back with the true one.
        """
        while self._queue:
            bound, rank, pair = heapq.heappop(self._queue)
            places = self._still_there(pair, self._followed[pair])
            count = self._occurrences(places)
            if count == -bound:
                self._followed[pair] = places
                return pair
            if count >= self._threshold:
                self._followed[pair] = places
                heapq.heappush(self._queue, (-count, rank, pair))
            else:
                del self._followed[pair]
        return None

    def _merge(self, pair: int) -> Merge:
        left, right = _split(pair)
        places = self._followed.pop(pair)
        if left == right:
            places = _every_other(np.sort(places), self._lengths[left])
        spelling = self._join(self.tokens[left], self.tokens[right])
        length = int(self._lengths[left] + self._lengths[right])
        merged = self._new_token(spelling, length)
        self._cells[places + self._lengths[left]] = INSIDE
        self._cells[places + (length - 1)] = BOUNDARY - length
        self._cells[places] = merged
        self._follow_neighbours(merged, length, places)
        return Merge(left, right)

    def _new_token(self, spelling: str, length: int) -> int:
        number = len(self.tokens)
        self.tokens.append(spelling)
        if number >= len(self._lengths):
            self._lengths = np.concatenate([self._lengths, np.ones_like(self._lengths)])
        self._lengths[number] = length
        return number

    def _follow_neighbours(self, token: int, length: int, places: NDArray[Any]) -> None:
        """Follow the frequent pairs that `token`, `length` cells at each of `places`, forms with its neighbours."""
        before = self._cells[places - 1]
        inside = before != BOUNDARY
        before = before[inside]
        starts = places[inside] - np.where(before >= 0, 1, BOUNDARY - before).astype(self._place)
        lefts = self._cells[starts].astype(np.int64)
        rights = self._cells[places + length].astype(np.int64)
        # where the right neighbour is `token` itself, the pair was found from there
        inside = (rights != BOUNDARY) & (rights != token)
        pairs = np.concatenate([(lefts << 32) | token, (token << 32) | rights[inside]])
        if len(pairs):
            self._follow_groups(*self._grouped(pairs, np.concatenate([starts, places[inside]])))

    def _follow_frequent(self, needed: int, lowest: int) -> None:
        """Lower the threshold to where enough pairs for `needed` merges reach it, and follow all these."""
        self._followed.clear()
        self._queue.clear()
        starts = np.flatnonzero(self._cells >= 0).astype(self._place)
        rights = self._cells[starts + self._lengths[self._cells[starts]]]
        inside = rights != BOUNDARY
        starts = starts[inside]
        pairs = (self._cells[starts].astype(np.int64) << 32) | rights[inside]
        if not len(pairs):
            self._threshold = lowest
            return
        pairs, places, firsts, counts = self._grouped(pairs, starts)
        wanted = self._wanted(len(counts), needed)
        threshold = int(np.partition(counts, -wanted)[-wanted])
        if self._threshold:
            threshold = min(threshold, self._threshold - 1)
        self._threshold = max(lowest, threshold)
        self._follow_groups(pairs, places, firsts, counts)

    @staticmethod
    def _wanted(distinct: int, needed: int) -> int:
        """How many of the `distinct` pairs to follow: rare ones would cost memory for nothing, too few many readings."""
        return max(1, min(distinct // 4, 2 * needed + SLACK))

    def _grouped(self, pairs: NDArray[np.int64], places: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Sort by pair; return pairs, places, where each pair begins, and how often each occurs."""
        order = np.argsort(pairs)
        pairs, places = pairs[order], places[order]
        firsts = np.flatnonzero(np.concatenate([[True], pairs[1:] != pairs[:-1]]))
        counts = np.add.reduceat(self._weights[self._word_of[places]], firsts)
        return pairs, places, firsts, counts

    def _follow_groups(
        self, pairs: NDArray[Any], places: NDArray[Any], firsts: NDArray[Any], counts: NDArray[Any]
    ) -> None:
        ends = np.append(firsts[1:], len(pairs))
        for i in np.flatnonzero(counts >= self._threshold).tolist():
            pair = int(pairs[firsts[i]])
            if self._allowed(pair):
                self._followed[pair] = places[firsts[i] : ends[i]]
                heapq.heappush(self._queue, (-int(counts[i]), self._rank(pair), pair))

    def _allowed(self, pair: int) -> bool:
        if not self._forbidden:
            return True
        left, right = _split(pair)
        return self._join(self.tokens[left], self.tokens[right]) not in self._forbidden

    def _still_there(self, pair: int, places: NDArray[Any]) -> NDArray[Any]:
        left, right = _split(pair)
        places = places[self._cells[places] == left]
        return places[self._cells[places + self._lengths[left]] == right]

    def _occurrences(self, places: NDArray[Any]) -> int:
        return int(self._weights[self._word_of[places]].sum())

    def _rank_by_bytes(self, pair: int) -> tuple[str, str]:
        left, right = _split(pair)
        return _descending(self.tokens[left]), _descending(self.tokens[right])


def _split(pair: int) -> tuple[int, int]:
    return pair >> 32, pair & 0xFFFFFFFF


def _every_other(places: NDArray[Any], length: int) -> NDArray[Any]:
    """Of sorted places where a token meets itself, those that a reader from the left would merge."""
    begins = np.concatenate([[True], np.diff(places) != length])
    first = np.flatnonzero(begins)[np.cumsum(begins) - 1]
    return places[(np.arange(len(places)) - first) % 2 == 0]


_TURNED = {ord(character): chr(BYTES - 1 - byte) for byte, character in enumerate(BYTE_CHARACTERS)}


def _descending(token: str) -> str:
    """A text that sorts before that of another token where the bytes of `token` sort after the other's."""
    return token.translate(_TURNED) + chr(BYTES)


def cells_of(words: Sequence[bytes], ids: NDArray[np.int32]) -> NDArray[np.int32]:
    """The array that a `MergeLearner` takes, of words whose bytes b are the tokens `ids`[b]."""
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    cells = np.full(int(lengths.sum()) + len(words) + 1, BOUNDARY, np.int32)
    inside = np.ones(len(cells), bool)
    inside[np.append(0, np.cumsum(lengths + 1))] = False
    cells[inside] = ids[np.frombuffer(b"".join(words), np.uint8)]
    return cells
