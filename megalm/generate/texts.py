"""Reads the texts that are to be classified; imports no torch."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from megalm.dataset.labelled import Columns, label_text
from megalm.dataset.tables import KINDS, Row, kind_of, rows_of
from megalm.errors import UserError
from megalm.tokenizer.documents import open_input

LINES = "lines"
STDIN = "-"


def read_texts(
    inputs: list[str], columns: Columns, kind: str | None, texts: list[str]
) -> tuple[list[tuple[str, ...]], list[str | None]]:
    """The texts of `inputs` (- is standard input) behind those of `texts`, and the label of each, None where none is asked for.

    kind: `csv`, `tsv`, `jsonl` or `lines`; by default what a file's name says, `lines` where it says nothing. UserError for
    a row without text, or without the label that is asked for.
    """
    if kind not in (None, LINES, *KINDS):
        raise UserError(f"--format is '{kind}'; choose one of {', '.join((*KINDS, LINES))}")
    found: list[tuple[str, ...]] = [(text,) for text in texts]
    truth: list[str | None] = [None] * len(found)
    for name in inputs:
        of_file = kind or (kind_of(Path(name)) if name != STDIN else None) or LINES
        for line, record in _rows(name, of_file, columns):
            where = f"{name if name != STDIN else 'standard input'} line {line}"
            pair = (columns.text,) if columns.pair is None else (columns.text, columns.pair)
            for key in pair:
                if not isinstance(record.get(key), str) or not record[key].strip():
                    raise UserError(
                        f"{where} has no text under '{key}' (found {', '.join(record)}); name the column with --text-key"
                    )
            found.append(tuple(record[key] for key in pair))
            label = label_text(record.get(columns.label), where) if columns.label else None
            if label == "":
                raise UserError(
                    f"{where} has no label under '{columns.label}'; mend it or leave --label-key out"
                )
            truth.append(label)
    return found, truth


def _rows(name: str, kind: str, columns: Columns) -> Iterator[Row]:
    if name == STDIN:
        yield from _rows_of(sys.stdin.buffer, kind, columns, "standard input")
        return
    path = Path(name)
    if not path.is_file():
        raise UserError(f"{name}: no such file")
    with open_input(path) as file:
        yield from _rows_of(file, kind, columns, name)


def _rows_of(file: IO[bytes], kind: str, columns: Columns, name: str) -> Iterator[Row]:
    if kind != LINES:
        yield from rows_of(file, kind, columns.numbered and kind != "jsonl", name)
        return
    if columns.label or columns.pair:
        raise UserError(f"{name} holds lines of text: labels and pairs need --format csv, tsv or jsonl")
    for number, line in enumerate(file, start=1):
        try:
            text = line.decode().strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{name} line {number} is not UTF-8 ({error.reason}); convert it first") from None
        if text:
            yield Row(number, {columns.text: text})
