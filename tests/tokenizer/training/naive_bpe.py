"""Byte pair encoding by the book: all pairs are counted again before every merge."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

Pair = tuple[str, str]


def learn(
    words: Mapping[tuple[str, ...], int],
    alphabet: Sequence[str],
    merges: int,
    min_count: int = 1,
    ties: str = "ids",
    join: Callable[[str, str], str] = str.__add__,
) -> list[Pair]:
    """The pairs merged until there are `merges` more tokens than `alphabet` has."""
    current = [(word, count) for word, count in words.items()]
    tokens = list(alphabet)
    learned: list[Pair] = []
    while len(tokens) < len(alphabet) + merges:
        pairs: Counter[Pair] = Counter()
        for word, count in current:
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        most = max(pairs.values(), default=0)
        if most < max(min_count, 1):
            break
        best = _first([pair for pair, count in pairs.items() if count == most], tokens, ties)
        learned.append(best)
        token = join(*best)
        if token not in tokens:
            tokens.append(token)
        current = [(_merged(word, best, token), count) for word, count in current]
    return learned


def _first(pairs: list[Pair], tokens: list[str], ties: str) -> Pair:
    if ties in ("bytes", "latin-1"):
        encoding = "utf-8" if ties == "bytes" else ties
        return max(pairs, key=lambda pair: tuple(token.encode(encoding) for token in pair))
    return min(pairs, key=lambda pair: tuple(map(tokens.index, pair)))


def _merged(word: tuple[str, ...], pair: Pair, token: str) -> tuple[str, ...]:
    out: list[str] = []
    i = 0
    while i < len(word):
        if word[i : i + 2] == pair:
            out.append(token)
            i += 2
        else:
            out.append(word[i])
            i += 1
    return tuple(out)
