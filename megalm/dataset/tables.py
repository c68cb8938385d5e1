"""Reads rows of CSV, TSV and JSONL files, and says where each stands."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from megalm.errors import UserError
from megalm.tokenizer.documents import COMPRESSED_SUFFIXES, open_input

KINDS = ("csv", "tsv", "jsonl")
_KIND_OF = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
_LONGEST_FIELD = 1 << 27  # characters; the standard library's limit is 2^17


class Row(NamedTuple):
    """A row and the number of the line that it begins on (CSV: ends on)."""

    line: int
    record: dict[str, Any]


def kind_of(path: Path) -> str | None:
    """`csv`, `tsv` or `jsonl` by a file's name, less .gz or .zst; None for another."""
    suffix = Path(path.stem).suffix if path.suffix in COMPRESSED_SUFFIXES else path.suffix
    return _KIND_OF.get(suffix.lower())


def read_rows(path: Path, kind: str, numbered: bool) -> Iterator[Row]:
    """Yield the rows of the file at `path` (see `rows_of`); it may be compressed."""
    if not path.is_file():
        raise UserError(f"input {path} does not exist; check the path")
    with open_input(path) as file:
        yield from rows_of(file, kind, numbered, str(path))


def rows_of(file: IO[bytes], kind: str, numbered: bool, name: str) -> Iterator[Row]:
    """Yield the rows of `file`. Columns have the names in its first line, or where `numbered` the names "1", "2", ...

    TSV knows no quotes, CSV has them as in RFC 4180. Raises UserError with the line for what cannot be read.
    """
    text = io.TextIOWrapper(file, "utf-8-sig", newline="")
    try:
        yield from _json_rows(text, name) if kind == "jsonl" else _table_rows(text, kind, numbered, name)
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 ({error.reason}); convert the file to UTF-8") from None
    finally:
        text.detach()


def _json_rows(text: io.TextIOWrapper, name: str) -> Iterator[Row]:
    for number, line in enumerate(text, start=1):
        if line.isspace():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name} line {number} is not JSON ({error}); write one object a line") from None
        if not isinstance(value, dict):
            raise UserError(f"{name} line {number} holds a {type(value).__name__}; write one object a line")
        yield Row(number, value)


def _table_rows(text: io.TextIOWrapper, kind: str, numbered: bool, name: str) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_FIELD)
    if kind == "csv":
        reader = csv.reader(text, strict=True)
    else:
        reader = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
    names: list[str] | None = None
    try:
        for fields in reader:
            if not fields:
                continue
            if names is None and not numbered:
                names = fields
                continue
            columns = names or [str(number) for number in range(1, len(fields) + 1)]
            if len(fields) > len(columns):
                raise UserError(
                    f"{name} line {reader.line_num} has {len(fields)} fields where the first line names {len(columns)}; "
                    "quote fields with the separator in them"
                )
            yield Row(reader.line_num, dict(zip(columns, fields, strict=False)))
    except csv.Error as error:
        raise UserError(f"{name} line {reader.line_num}: {error}; mend the line or say --format") from None
