"""Reads the items of benchmarks: JSONL, JSON, CSV or text files, plain or compressed."""

import csv
import io
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from megalm.config.section import Section
from megalm.errors import UserError
from megalm.tokenizer.documents import COMPRESSED_SUFFIXES, open_input

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
_TABLES = (".csv", ".tsv")


class Benchmark(Section):
    """A benchmark whose items must not be trained on."""

    path: Path = Field(
        description="A file of items: .jsonl, .json (a list of objects), .csv, .tsv or .txt (an item a line), "
        "then perhaps .gz or .zst."
    )
    keys: list[str] = Field(
        [],
        description="The keys (columns) whose texts, or lists of texts, make an item; needed for all but .txt.",
    )
    name: str = Field("", description="How the benchmark is called in lists; by default the file's name.")

    @property
    def label(self) -> str:
        """The name, or else the file's."""
        return self.name or self.path.name.split(".")[0]


class Item(NamedTuple):
    """An item and its texts; `label` is the benchmark's name and the item's number in the file, from 0."""

    label: str
    texts: list[str]


def read_items(benchmark: Benchmark) -> Iterator[Item]:
    """Yield the items of a benchmark, their texts in Unicode's composed form.

    Raises UserError for a file that is missing, of no known kind or not in the form it should have.
    """
    path = benchmark.path
    suffix = Path(path.stem).suffix if path.suffix in COMPRESSED_SUFFIXES else path.suffix
    if suffix not in SUFFIXES:
        raise UserError(
            f"benchmark {path} is of no known kind; its name must end in one of {' '.join(SUFFIXES)}"
        )
    if not path.exists():
        raise UserError(f"benchmark {path} does not exist; check the path")
    if suffix != ".txt" and not benchmark.keys:
        raise UserError(f"benchmark {path} needs `keys`: the names of the fields whose texts make an item")
    with open_input(path) as file:
        # Lines of JSON and text end at newline bytes alone: texts may hold other separators.
        newline = "" if suffix in _TABLES else "\n"
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline)
        try:
            for number, value in enumerate(_values(text, suffix)):
                texts = [value] if suffix == ".txt" else _texts(benchmark, number, value)
                yield Item(f"{benchmark.label}#{number}", [unicodedata.normalize("NFC", t) for t in texts])
        except (json.JSONDecodeError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"benchmark {path} cannot be read as {suffix} in UTF-8 ({error})") from error


def _values(text: io.TextIOWrapper, suffix: str) -> Iterator[Any]:
    if suffix == ".json":
        value = json.load(text)
        yield from value if isinstance(value, list) else [value]
    elif suffix in _TABLES:
        yield from csv.DictReader(text, delimiter="," if suffix == ".csv" else "\t")
    else:
        lines = (line.strip("\r\n") for line in text)
        yield from (line if suffix == ".txt" else json.loads(line) for line in lines if line.strip())


def _texts(benchmark: Benchmark, number: int, value: Any) -> list[str]:
    if not isinstance(value, dict):
        raise UserError(f"benchmark {benchmark.path} item {number} is no object but {type(value).__name__}")
    texts: list[str] = []
    for key in benchmark.keys:
        if key not in value:
            found = ", ".join(map(str, value))
            raise UserError(f"benchmark {benchmark.path} item {number} has no `{key}` (found: {found})")
        texts += _strings(value[key])
    return texts


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
