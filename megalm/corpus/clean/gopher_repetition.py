"""The step `gopher_repetition`: removes documents that repeat themselves (Rae et al. 2021, arXiv:2112.11446, table A1)."""

import numpy as np
from datatrove.data import Document
from pydantic import Field

from megalm.corpus.clean.rule import above
from megalm.corpus.step import Filter, ForLanguages
from megalm.corpus.words import Split, split


class GopherRepetition(Filter):
    """Keeps documents below the paper's shares of repeated lines, paragraphs and n-grams; null switches a rule off."""

    name = "gopher_repetition"

    class Settings(ForLanguages):
        """Options of the step `gopher_repetition`: thresholds as published."""

        max_duplicate_lines: float | None = Field(0.30, description="Greatest share of lines seen before.")
        max_duplicate_paragraphs: float | None = Field(
            0.30, description="Greatest share of paragraphs seen before."
        )
        max_duplicate_line_characters: float | None = Field(
            0.20, description="Greatest share of characters in lines seen before."
        )
        max_duplicate_paragraph_characters: float | None = Field(
            0.20, description="Greatest share of characters in paragraphs seen before."
        )
        max_top_ngram_characters: dict[int, float] = Field(
            {2: 0.20, 3: 0.18, 4: 0.16},
            description="For each n, the greatest share of characters in the most frequent n-gram; {} for no rule.",
        )
        max_duplicate_ngram_characters: dict[int, float] = Field(
            {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10},
            description="For each n, the greatest share of characters in n-grams seen before; {} for no rule.",
        )

    settings: Settings

    def check(self, document: Document) -> str | None:
        """The first rule that the document breaks; an empty document breaks none."""
        parts = split(document)
        if not parts.tokens:
            return None
        return self._parts(parts) or self._ngrams(parts)

    def _parts(self, parts: Split) -> str | None:
        settings, characters = self.settings, len(parts.text)
        kinds = (
            ("paragraph", parts.paragraphs, settings.max_duplicate_paragraphs, settings.max_duplicate_paragraph_characters),
            ("line", parts.lines, settings.max_duplicate_lines, settings.max_duplicate_line_characters),
        )  # fmt: skip
        for kind, elements, max_share, max_characters in kinds:
            count, repeated = duplicates(elements)
            if above(count / len(elements), max_share):
                return f"gopher_repetition.duplicate_{kind}s"
            if above(repeated / characters, max_characters):
                return f"gopher_repetition.duplicate_{kind}_characters"
        return None

    def _ngrams(self, parts: Split) -> str | None:
        top, repeated = self.settings.max_top_ngram_characters, self.settings.max_duplicate_ngram_characters
        ngrams, lengths = parts.token_ids, parts.token_lengths
        characters = len(parts.text)
        for n in range(2, max([*top, *repeated, 1]) + 1):
            ngrams = longer(ngrams, parts.token_ids[n - 1 :])
            _, first, inverse, counts = np.unique(
                ngrams, return_index=True, return_inverse=True, return_counts=True
            )
            if len(first) == len(ngrams):
                return None  # no longer n-gram repeats either
            ngrams = inverse
            if n in top and top_ngram_characters(n, first, counts, lengths) > top[n] * characters:
                return f"gopher_repetition.top_{n}_gram"
            if n in repeated:
                limit = repeated[n] * characters
                seen_before = np.ones(len(ngrams), bool)
                seen_before[first] = False
                if (
                    covered_characters(n, seen_before, lengths)
                    > limit
                    < duplicate_characters(n, ngrams, lengths)
                ):
                    return f"gopher_repetition.duplicate_{n}_grams"
        return None


def duplicates(elements: list[str]) -> tuple[int, int]:
    """How many of `elements` were there before, and how many characters these have."""
    if len(set(elements)) == len(elements):
        return 0, 0
    seen: set[str] = set()
    repeated = [element for element in elements if element in seen or seen.add(element)]  # type: ignore[func-returns-value]
    return len(repeated), sum(map(len, repeated))


def longer(ngrams: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Numbers of n-grams from those of (n-1)-grams and of the tokens behind them: equal for equal n-grams alone.

    Both are smaller than the number of tokens in the document, so that the products fit 63 bits.
    """
    base = int(tokens.max(initial=0)) + 1
    return ngrams[: len(tokens)] * base + tokens


def top_ngram_characters(n: int, first: np.ndarray, counts: np.ndarray, lengths: np.ndarray) -> int:
    """Characters in all places of the most frequent n-gram, spaces within included; the first one where several are."""
    most = counts.max()
    begin = int(first[counts == most].min())
    return int((lengths[begin : begin + n].sum() + n - 1) * most)


def covered_characters(n: int, seen_before: np.ndarray, lengths: np.ndarray) -> int:
    """Characters of all tokens in n-grams seen before: no less than `duplicate_characters`, and quicker to find."""
    edges = np.zeros(len(lengths) + 1, np.int64)
    starts = np.flatnonzero(seen_before)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + n, -1)
    return int(lengths[np.cumsum(edges[:-1]) > 0].sum())


def duplicate_characters(n: int, ngrams: np.ndarray, lengths: np.ndarray) -> int:
    """Characters in n-grams seen before, none counted twice: after such an n-gram the search goes on behind it."""
    ends = np.concatenate(([0], np.cumsum(lengths)))
    characters = (ends[n:] - ends[:-n]).tolist()
    numbers = ngrams.tolist()
    seen: set[int] = set()
    total = index = 0
    while index < len(numbers):
        if numbers[index] in seen:
            total += characters[index]
            index += n
        else:
            seen.add(numbers[index])
            index += 1
    return total
