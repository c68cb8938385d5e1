"""Counts the words of a corpus exactly, on several processes and in memory that does not grow with it."""

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from megalm.tasks import Task, progress_bar, run_tasks
from megalm.tokenizer.documents import SampleBy
from megalm.tokenizer.training.texts import Piece, texts

WORDS_IN_MEMORY = 1 << 20
"""Distinct words that one process holds; more go to the disk."""
BYTES_IN_MEMORY = 1 << 28
"""Length of all words that one process holds."""
BATCH_CHARACTERS = 1 << 20
WORDS_A_BLOCK = 1 << 14
FILES_AT_ONCE = 256


class Cut(Protocol):
    """What cuts a text into words; it travels to worker processes."""

    def count(self, texts: Iterable[str]) -> Mapping[bytes, int]:
        """How often each word occurs in `texts`, spelled in UTF-8."""


@dataclass(frozen=True)
class WordCounts:
    """Distinct words in the order of their bytes, each with how often it occurs."""

    words: list[bytes]
    counts: NDArray[np.int64]
    distinct: int
    """Words there were, before the rarest were left out."""
    left_out: float
    """Share of the text's words that were left out."""

    def at_least(self, count: int) -> "WordCounts":
        """The words that occur `count` times or more."""
        kept = np.flatnonzero(self.counts >= count)
        return WordCounts([self.words[i] for i in kept], self.counts[kept], self.distinct, self.left_out)


def count_words(
    bundles: Sequence[Sequence[Piece]],
    cut: Cut,
    folder: Path,
    max_words: int,
    text_key: str = "text",
    sample_by: SampleBy = "document",
    workers: int = 1,
    progress: bool = False,
) -> WordCounts:
    """Count the words that `cut` finds in the texts of `bundles`, and keep the `max_words` most frequent.

    Each bundle is a task for a process, which writes its counts into `folder`; here they are added up. Whoever holds
    more than `WORDS_IN_MEMORY` words writes them to `folder` in order, and the files are merged at the end. So counts
    are exact, memory is bounded, and neither `workers` nor the order of the tasks plays a part. Of words equally
    frequent, those whose bytes sort first are kept.
    """
    tasks = [
        Task(
            _count_bundle,
            (bundle, cut, folder, number, text_key, sample_by),
            sum(piece.size for piece in bundle),
        )
        for number, bundle in enumerate(bundles)
    ]
    with progress_bar("count words", sum(task.size for task in tasks), progress) as advance:
        run_tasks(tasks, min(workers, max(len(tasks), 1)), advance)
    total = Tally(folder, "total")
    with progress_bar("add up", len(tasks), progress) as advance:
        for number in range(len(tasks)):
            for path in _runs(folder, _bundle_name(number)):
                for words, counts in _read_run(path):
                    total.add(words, counts)
                path.unlink()
            advance(1)
    return _most_frequent(total, max_words)


def _count_bundle(
    bundle: Sequence[Piece], cut: Cut, folder: Path, number: int, text_key: str, sample_by: SampleBy
) -> None:
    tally = Tally(folder, _bundle_name(number))
    for piece in bundle:
        for batch in _batches(texts(piece, text_key, sample_by)):
            counts = cut.count(batch)
            tally.add(counts.keys(), counts.values())
    tally.save()


def _batches(source: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in source:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    yield batch


class Tally:
    """Adds up counts of words; what does not fit into memory lies on disk in order of the words."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._counts: dict[bytes, int] = {}
        self._length = 0
        self._runs: list[Path] = []
        self._numbers = itertools.count()

    def add(self, words: Iterable[bytes], counts: Iterable[int]) -> None:
        """Add to what each of `words` has what stands beside it in `counts`."""
        known = self._counts
        before = len(known)
        for word, count in zip(words, counts, strict=True):
            known[word] = known.get(word, 0) + count
        self._length += sum(map(len, itertools.islice(reversed(known), len(known) - before)))
        if len(known) >= WORDS_IN_MEMORY or self._length >= BYTES_IN_MEMORY:
            self.save()

    def save(self) -> None:
        """Move what lies in memory to the disk."""
        self._runs.append(self._write(sorted(self._counts.items())))
        self._counts.clear()
        self._length = 0

    def sums(self) -> Iterator[tuple[bytes, int]]:
        """Yield every word and its count, in the order of the words' bytes."""
        while len(self._runs) > FILES_AT_ONCE:
            some, self._runs = self._runs[:FILES_AT_ONCE], self._runs[FILES_AT_ONCE:]
            self._runs.append(self._write(_added_up(map(_entries, some))))
            for path in some:
                path.unlink()
        self._counts = dict(sorted(self._counts.items()))
        yield from _added_up([*map(_entries, self._runs), iter(self._counts.items())])

    def _write(self, entries: Iterable[tuple[bytes, int]]) -> Path:
        path = self._folder / f"{self._name}-{next(self._numbers):06d}.run"
        _write_run(path, entries)
        return path


def _most_frequent(tally: Tally, max_words: int) -> WordCounts:
    frequencies: Counter[int] = Counter()
    words: list[bytes] = []
    counts: list[int] = []
    for word, count in tally.sums():
        frequencies[count] += 1
        if len(words) <= max_words:
            words.append(word)
            counts.append(count)
    if len(words) > max_words:
        words, counts = _at_the_top(tally, frequencies, max_words)
    occurrences = sum(count * number for count, number in frequencies.items())
    left_out = 1 - sum(counts) / max(occurrences, 1)
    return WordCounts(words, np.array(counts, np.int64), frequencies.total(), left_out)


def _at_the_top(tally: Tally, frequencies: Counter[int], room: int) -> tuple[list[bytes], list[int]]:
    """The `room` most frequent words; `frequencies` tells how many words occur how often."""
    descending = iter(sorted(frequencies, reverse=True))
    least = next(descending)
    while frequencies[least] < room:
        room -= frequencies[least]
        least = next(descending)
    words: list[bytes] = []
    counts: list[int] = []
    for word, count in tally.sums():
        if count == least:
            room -= 1
        if count > least or (count == least and room >= 0):
            words.append(word)
            counts.append(count)
    return words, counts


def _added_up(sources: Iterable[Iterator[tuple[bytes, int]]]) -> Iterator[tuple[bytes, int]]:
    last, total = None, 0
    for word, count in heapq.merge(*sources):
        if word != last:
            if last is not None:
                yield last, total
            last, total = word, 0
        total += count
    if last is not None:
        yield last, total


def _bundle_name(number: int) -> str:
    return f"bundle-{number:06d}"


def _runs(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(f"{name}-*.run"))


def _write_run(path: Path, entries: Iterable[tuple[bytes, int]]) -> None:
    """Write words and counts in blocks: how many, their lengths, their counts, the words."""
    source = iter(entries)
    with open(path, "wb") as file:
        while block := list(itertools.islice(source, WORDS_A_BLOCK)):
            words = [word for word, _ in block]
            numbers = [len(block), *map(len, words), *(count for _, count in block)]
            file.write(np.array(numbers, np.int64).tobytes())
            file.write(b"".join(words))


def _read_run(path: Path) -> Iterator[tuple[list[bytes], list[int]]]:
    with open(path, "rb") as file:
        while header := file.read(8):
            size = int(np.frombuffer(header, np.int64)[0])
            numbers: NDArray[Any] = np.frombuffer(file.read(16 * size), np.int64)
            ends = np.cumsum(numbers[:size])
            data = file.read(int(ends[-1]))
            begins = (ends - numbers[:size]).tolist()
            words = [data[begin:end] for begin, end in zip(begins, ends.tolist(), strict=True)]
            yield words, numbers[size:].tolist()


def _entries(path: Path) -> Iterator[tuple[bytes, int]]:
    for words, counts in _read_run(path):
        yield from zip(words, counts, strict=True)
