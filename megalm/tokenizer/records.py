"""Reads the values of a JSON file, an array's elements or a line each; what is no JSON is told, not raised."""

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from megalm.errors import UserError
from megalm.tokenizer.documents import COMPRESSED_SUFFIXES, open_input

_DECODER = json.JSONDecoder()
_SPACE = " \t\r\n"


class Broken(NamedTuple):
    """Stands for a line that is no JSON."""

    problem: str


class Record(NamedTuple):
    """A value, or what is wrong in its place, and where it begins in the (uncompressed) file."""

    offset: int
    """In bytes."""
    line: int
    """From 1."""
    value: Any


def read_records(path: Path) -> Iterator[Record]:
    """Yield the elements of the array that a .json file holds, or the lines of any other; empty lines are passed over.

    Raises UserError for a damaged compressed file, and for an array that cannot be read to its end.
    """
    name = path.name.removesuffix(path.suffix) if path.suffix in COMPRESSED_SUFFIXES else path.name
    with open_input(path) as file:
        if not name.endswith(".json"):
            yield from _of_lines(file)
            return
        data = file.read()
    if data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
        yield from _of_array(path, data)
    else:
        yield from _of_lines(io.BytesIO(data))


def parse_json(data: bytes) -> Any:
    """Return the value of a text, NaN and the like allowed, or `Broken`."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass
    try:
        value = json.loads(data.decode())
        check_text(value)
        return value
    except json.JSONDecodeError as error:
        return Broken(error.msg)
    except (ValueError, RecursionError) as error:
        return Broken(" ".join(str(error).split()))


def check_text(value: Any) -> None:
    """Raise ValueError where a text in `value` holds half a character, which no tokenizer takes."""
    json.dumps(value, ensure_ascii=False).encode()


def _of_lines(lines: Iterable[bytes]) -> Iterator[Record]:
    offset = 0
    for number, line in enumerate(lines, 1):
        if not line.isspace():
            yield Record(offset, number, parse_json(line if offset else line.removeprefix(b"\xef\xbb\xbf")))
        offset += len(line)


def _of_array(path: Path, data: bytes) -> Iterator[Record]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason}); convert the file to UTF-8") from error
    seen, offset, line = 0, len(data) - len(text.encode()), 1
    position = _skip(text, 0) + 1
    closing = False
    while True:
        position = _skip(text, position)
        offset += len(text[seen:position].encode())
        line += text.count("\n", seen, position)
        seen = position
        if text[position : position + 1] == "]":
            if _skip(text, position + 1) < len(text):
                raise UserError(f"{path} goes on after its array (line {line}); correct it")
            return
        if closing:
            if text[position : position + 1] != ",":
                raise UserError(f"{path} line {line}: a comma or the array's end is missing; correct it")
            closing, position = False, position + 1
            continue
        try:
            value, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            problem = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            place = line + text.count("\n", position, getattr(error, "pos", position))
            raise UserError(f"{path} line {place}: the array is no JSON ({problem}); correct it") from error
        try:
            check_text(value)
        except ValueError as error:
            value = Broken(" ".join(str(error).split()))
        yield Record(offset, line, value)
        closing = True


def _skip(text: str, position: int) -> int:
    """The first place from `position` on that is no white space."""
    while position < len(text) and text[position] in _SPACE:
        position += 1
    return position
