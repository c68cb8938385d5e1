"""Measures tokenizers on documents: compression, fertility, unknown text and use of the vocabulary, by group."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megalm.errors import UserError
from megalm.tokenizer.base import Tokenizer
from megalm.tokenizer.documents import Document, SampleBy, check_sample_by, expand_inputs, read_documents
from megalm.tokenizer.vocabulary import Vocabulary, named_piece, read_vocabulary
from megalm.tokenizer.words import count_words

BATCH_CHARACTERS = 1 << 20
BATCH_DOCUMENTS = 10_000
MAX_GROUPS = 1000
NO_GROUP, OTHER_GROUPS = "(none)", "(others)"
MOSTLY = 0.5
"""Share of characters of scripts without spaces from which a group's words are called characters."""


@dataclass
class Measure:
    """What some documents hold, and how many tokens they became.

    Words are those of `megalm.tokenizer.words`; `unspaced` of them are single characters of scripts without spaces.
    """

    documents: int = 0
    bytes: int = 0
    characters: int = 0
    words: int = 0
    unspaced: int = 0
    tokens: int = 0
    unknown: int = 0
    byte_pieces: int = 0

    def add(self, counts: Sequence[int]) -> None:
        """Add counts in the order of the fields."""
        for name, count in zip(self.__dataclass_fields__, counts, strict=True):
            setattr(self, name, getattr(self, name) + int(count))

    def summary(self) -> dict[str, Any]:
        """The counts and what follows from them; None where nothing is there to divide by.

        `fertility` is tokens a word; with `words_are_characters` it is tokens a character of a script without spaces.
        """
        counts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            **counts,
            "bytes_per_token": _ratio(self.bytes, self.tokens),
            "characters_per_token": _ratio(self.characters, self.tokens),
            "words_per_token": _ratio(self.words, self.tokens),
            "fertility": _ratio(self.tokens, self.words),
            "words_are_characters": self.unspaced > MOSTLY * self.words,
            "unknown_rate": _ratio(self.unknown, self.tokens),
            "byte_piece_rate": _ratio(self.byte_pieces, self.tokens),
        }


@dataclass
class CorpusReport:
    """How one tokenizer does on a corpus: in all, by group of each key, and how often each id [V] came."""

    vocabulary: Vocabulary
    total: Measure = field(default_factory=Measure)
    groups: dict[str, dict[str, Measure]] = field(default_factory=dict)
    used_V: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def summary(self, examples: int = 10) -> dict[str, Any]:
        """All of it in plain values, with `examples` of the unused, longest used and most frequent pieces."""
        pieces = self.vocabulary.piece_ids
        unused = pieces[self.used_V[pieces] == 0]
        used = pieces[self.used_V[pieces] > 0]
        frequent = sorted((int(i) for i in used), key=lambda i: (-self.used_V[i], i))[:examples]
        return {
            "total": self.total.summary(),
            "groups": {
                key: {name: measure.summary() for name, measure in by_size(groups)}
                for key, groups in self.groups.items()
            },
            "unused_pieces": len(unused),
            "unused_examples": self._named(self.vocabulary.longest(examples, unused)),
            "longest_used": self._named(self.vocabulary.longest(examples, used)),
            "most_frequent": [
                {**named_piece(self.vocabulary, i), "count": int(self.used_V[i])} for i in frequent
            ],
        }

    def _named(self, ids: Sequence[int]) -> list[dict[str, Any]]:
        return [named_piece(self.vocabulary, i) for i in ids]


def by_size(groups: Mapping[str, Measure]) -> list[tuple[str, Measure]]:
    """Groups, the largest in bytes first, equal ones by name."""
    return sorted(groups.items(), key=lambda item: (-item[1].bytes, item[0]))


def measure_corpus(
    tokenizers: Sequence[Tokenizer],
    inputs: Sequence[str | Path],
    text_key: str = "text",
    sample_by: SampleBy = "document",
    by: Sequence[str] = (),
    sample_bytes: int | None = None,
) -> list[CorpusReport]:
    """Measure each of `tokenizers` on the documents of `inputs`, all in one pass with bounded memory.

    by: keys of JSON documents, nested ones with dots (`metadata.language`), whose values make groups; beyond
    1000 values, further ones are counted together. sample_bytes: read about so many bytes of text, of each input
    its first documents up to its share by file size. Raises UserError for unreadable or empty inputs, or a key
    that no document has.
    """
    check_sample_by(sample_by)
    if sample_bytes is not None and sample_bytes < 1:
        raise UserError(f"sample_bytes is {sample_bytes}; it must be at least 1")
    reports = [CorpusReport(read_vocabulary(tokenizer)) for tokenizer in tokenizers]
    for report, tokenizer in zip(reports, tokenizers, strict=True):
        report.groups = {key: {} for key in by}
        report.used_V = np.zeros(tokenizer.vocab_size, np.int64)
    documents = _sampled(expand_inputs(inputs), text_key, sample_by, sample_bytes)
    for batch in _batches(documents):
        _measure_batch(tokenizers, reports, batch, by)
    if not reports[0].total.bytes:
        raise UserError(f"no text in {', '.join(map(str, inputs))}; give files that hold some")
    for key in by:
        if set(reports[0].groups[key]) == {NO_GROUP}:
            raise UserError(
                f"no document has a value under '{key}'; name a key of the JSON lines, nested ones with dots"
            )
    return reports


def _measure_batch(
    tokenizers: Sequence[Tokenizer], reports: Sequence[CorpusReport], batch: list[Document], by: Sequence[str]
) -> None:
    texts = [document.text for document in batch]
    sizes = np.array([(1, len(text.encode()), len(text), *count_words(text)) for text in texts], np.int64)
    for tokenizer, report in zip(tokenizers, reports, strict=True):
        ids, counts = tokenizer.encode_ragged(texts)
        report.used_V += np.bincount(ids, minlength=len(report.used_V))
        marks = (report.vocabulary.unknown_V, report.vocabulary.byte_piece_V)
        marked = [_per_document(mark_V[ids], counts) for mark_V in marks]
        rows = np.column_stack([sizes, counts, *marked])
        report.total.add(rows.sum(0).tolist())
        for key, groups in report.groups.items():
            for document, row in zip(batch, rows.tolist(), strict=True):
                name = group_of(document.record, key)
                if name not in groups and len(groups) >= MAX_GROUPS:
                    name = OTHER_GROUPS
                groups.setdefault(name, Measure()).add(row)


def group_of(record: Mapping[str, Any] | None, key: str) -> str:
    """The value under `key` of a JSON document, nested ones with dots, as a name; `(none)` where there is none."""
    value: Any = record
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is None:
        return NO_GROUP
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _per_document(marks: NDArray[np.bool_], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of the marks of all documents, joined, belong to each."""
    sums = np.concatenate([[0], np.cumsum(marks)])
    ends = np.cumsum(counts)
    return sums[ends] - sums[ends - counts]


def _sampled(
    files: list[Path], text_key: str, sample_by: SampleBy, sample_bytes: int | None
) -> Iterator[Document]:
    total = sum(path.stat().st_size for path in files)
    for path in files:
        budget = None if sample_bytes is None else sample_bytes * path.stat().st_size / max(total, 1)
        used = 0
        for document in read_documents(path, text_key, sample_by):
            yield document
            used += len(document.text.encode())
            if budget is not None and used >= budget:
                break


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _ratio(above: int, below: int) -> float | None:
    return above / below if below else None
