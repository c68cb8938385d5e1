"""JSONL, CSV and Parquet files: a document is a line or a row, with the text in a named column."""

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import orjson
from datatrove.data import Document
from pydantic import Field

from megalm.corpus.shards import mend
from megalm.corpus.sources.base import InputFile, Part, Source, decode, open_binary, read_lines
from megalm.corpus.sources.text import cut_lines

Row = dict[str, Any]

DEEPEST = 200
"""Levels of metadata; the library that writes shards takes 254."""


class Table(Source):
    """Rows with columns."""

    text_key: str = Field("text", description="Column that holds the text.")
    id_key: str = Field(
        "id", description="Column that holds the document's id; rows without it are named by file and place."
    )
    keep: list[str] | None = Field(
        None, description="Columns to keep as metadata; by default all, and what is in a column `metadata`."
    )

    def row_document(self, file: InputFile, place: int, row: Any, counters: Counter[str]) -> Document | None:
        """The document of a row; None, and counted, for a row without text."""
        text = row.get(self.text_key) if isinstance(row, dict) else None
        if not isinstance(text, str):
            counters["broken"] += 1
            return None
        if not text.strip():
            counters["empty"] += 1
            return None
        id = row.get(self.id_key)
        inner = row.get("metadata")
        columns = row | inner if isinstance(inner, dict) else row
        left_out = {self.text_key, self.id_key, *(["metadata"] if isinstance(inner, dict) else [])}
        names = columns if self.keep is None else self.keep
        metadata = {name: columns[name] for name in names if name in columns and name not in left_out}
        if _deeper(metadata.values(), DEEPEST):
            counters["broken"] += 1
            return None
        document = self.document(file, place, text, metadata)
        if id not in (None, ""):
            document.id = str(id)
        return document


class Jsonl(Table):
    """JSON lines: an object a line."""

    kind: Literal["jsonl"] = Field("jsonl", description="What the files are.")
    suffixes = (".jsonl", ".ndjson")

    def cut(self, number: int, file: InputFile, size: int) -> list[Part]:
        """Ranges of bytes of a plain file."""
        return cut_lines(number, file, size)

    def read(self, part: Part, counters: Counter[str]) -> Iterator[Document]:
        """Yield a document for each line that is an object with a text."""
        lines = read_lines(part.file.path, part.start, part.stop, self.max_document_bytes, counters)
        for offset, value in parse_lines(lines, counters):
            document = self.row_document(part.file, offset, value, counters)
            if document is not None:
                yield document


class Csv(Table):
    """CSV or TSV files with a line of column names at the top, or with the names given."""

    kind: Literal["csv"] = Field("csv", description="What the files are.")
    delimiter: str = Field(
        "", max_length=1, description="Between columns; by default a tab in .tsv, else a comma."
    )
    columns: list[str] | None = Field(
        None, description="Names of the columns, for files that do not name them."
    )
    suffixes = (".csv", ".tsv")

    def read(self, part: Part, counters: Counter[str]) -> Iterator[Document]:
        """Yield a document for each row with a text."""
        csv.field_size_limit(self.max_document_bytes)
        stem = part.file.path.removesuffix(".gz").removesuffix(".zst")
        delimiter = self.delimiter or ("\t" if stem.endswith(".tsv") else ",")
        lines = read_lines(part.file.path, 0, None, self.max_document_bytes, counters)
        rows = csv.reader((decode(line, counters) for _, line in lines), delimiter=delimiter)
        columns = self.columns
        for number, row in enumerate(_readable(rows, counters)):
            if columns is None:
                columns = row
                continue
            document = self.row_document(part.file, number, dict(zip(columns, row, strict=False)), counters)
            if document is not None:
                yield document


class Parquet(Table):
    """Parquet files."""

    kind: Literal["parquet"] = Field("parquet", description="What the files are.")
    suffixes = (".parquet",)

    def read(self, part: Part, counters: Counter[str]) -> Iterator[Document]:
        """Yield a document for each row with a text, a batch in memory at a time."""
        import pyarrow
        from pyarrow import parquet

        number = 0
        try:
            with parquet.ParquetFile(open_binary(part.file.path)) as file:
                for batch in file.iter_batches(batch_size=256):
                    for row in batch.to_pylist():
                        document = self.row_document(part.file, number, row, counters)
                        number += 1
                        if document is not None and len(document.text) > self.max_document_bytes:
                            counters["too_large"] += 1
                        elif document is not None:
                            yield document
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError):
            counters["broken"] += 1


def parse_lines(lines: Iterable[tuple[int, bytes]], counters: Counter[str]) -> Iterator[tuple[int, Any]]:
    """The JSON values of lines, blank lines left out; what is not JSON is counted as broken."""
    for offset, line in lines:
        if not line.strip():
            continue
        try:
            yield offset, orjson.loads(line)
        except orjson.JSONDecodeError:
            if (value := _loads_leniently(line, counters)) is None:
                counters["broken"] += 1
            else:
                yield offset, value


def _loads_leniently(line: bytes, counters: Counter[str]) -> Any:
    """A line with invalid UTF-8, a byte order mark or half of a surrogate pair; None where it is no JSON."""
    import json

    damage: Counter[str] = Counter()
    text = decode(line, damage)
    try:
        value = mend(json.loads(text))
    except (ValueError, RecursionError):
        return None
    counters["invalid_utf8"] += bool(damage or "\\ud" in text.lower())
    return value


def _deeper(values: Iterable[Any], levels: int) -> bool:
    """Whether lists and objects stand in each other more than `levels` deep."""
    for _ in range(levels):
        values = [
            inner
            for value in values
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not values:
            return False
    return True


def _readable(rows: Any, counters: Counter[str]) -> Iterator[list[str]]:
    while True:
        try:
            yield next(rows)
        except StopIteration:
            return
        except csv.Error:
            counters["broken"] += 1
