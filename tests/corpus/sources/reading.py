"""Reads one source in a test."""

from collections import Counter
from pathlib import Path

from datatrove.data import Document

from megalm.corpus.sources import source_class


def read(kind: str, path: Path, cut: int | None = None, **options) -> tuple[list[Document], dict[str, int]]:
    """The documents of a source, read in parts of `cut` bytes, and what it counted."""
    source = source_class(kind)(path=str(path), **options)
    counters: Counter[str] = Counter()
    documents = [
        document
        for file in source.files()
        for part in source.cut(0, file, cut or 1 << 30)
        for document in source.read(part, counters)
    ]
    return documents, {name: count for name, count in counters.items() if count}
