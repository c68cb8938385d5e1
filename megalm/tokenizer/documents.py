"""Reads documents from JSONL and text files, plain or compressed, one at a time."""

import contextlib
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, get_args

import orjson

from megalm.errors import UserError
from megalm.tokenizer.load import FILE_NAMES, METADATA_NAME, holds_tokenizer

BUFFER = 1 << 20
LINES_AT_ONCE = 1 << 16
"""Bytes of lines that are taken from a file together."""
MOST_KEYS = 12
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TEXT_SUFFIXES = (".txt", ".text", ".md")
COMPRESSED_SUFFIXES = (".gz", ".zst")
BUILD_SUFFIX = ".build"
"""Of the folder of an unfinished build, beside the token files to be."""

SampleBy = Literal["document", "paragraph", "line"]
"""What one document of a text file is: the whole file, lines up to an empty one, or a line."""


class Document(NamedTuple):
    """A text and where in its (uncompressed) file it begins, in bytes."""

    offset: int
    text: str
    record: dict[str, Any] | None = None
    """The JSON object that holds the text; None for a text file."""


def expand_inputs(inputs: Iterable[str | Path]) -> list[Path]:
    """Return the files that `inputs` name: files as given, directories as the sorted documents below them.

    Of a directory, hidden files and those of tokenizers and token files are passed over.
    Raises UserError for a missing path, a kind of file that is not read here, or no file at all.
    """
    files: list[Path] = []
    for path in map(Path, inputs):
        if path.is_dir():
            files += sorted(p for p in path.rglob("*") if p.is_file() and _is_document(p, path))
        elif not path.exists():
            raise UserError(f"input {path} does not exist; check the path")
        elif _kind_suffix(path) not in JSON_SUFFIXES + TEXT_SUFFIXES:
            known = " ".join(JSON_SUFFIXES + TEXT_SUFFIXES)
            raise UserError(
                f"input {path} is of no known kind; its name must end in one of {known} (then .gz or .zst)"
            )
        else:
            files.append(path)
    if not files:
        raise UserError(
            f"no input files in {', '.join(map(str, inputs)) or 'an empty list'}; name JSONL or text files"
        )
    return files


def check_sample_by(sample_by: str) -> None:
    """Raise UserError unless `sample_by` is one of the ways to cut text files into documents."""
    if sample_by not in get_args(SampleBy):
        raise UserError(f"sample_by is '{sample_by}'; choose one of {', '.join(get_args(SampleBy))}")


def is_compressed(path: Path) -> bool:
    """Whether `path` is read through a decompressor."""
    return path.suffix in COMPRESSED_SUFFIXES


def splits_by_line(path: Path, sample_by: SampleBy) -> bool:
    """Whether a line of `path` is a document of its own, so that ranges of the file can be read apart."""
    return not is_compressed(path) and (_kind_suffix(path) in JSON_SUFFIXES or sample_by == "line")


def read_documents(
    path: Path,
    text_key: str = "text",
    sample_by: SampleBy = "document",
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Document]:
    """Yield the documents of `path` that begin in bytes [start, stop) of it.

    A line of JSONL is an object whose `text_key` holds the text. Lines end at newline bytes alone (texts may
    hold other separators); empty lines are passed over. A range other than the whole needs
    `splits_by_line(path)`. Raises UserError with file and line for a line that is not such an object, or text
    that is not UTF-8.
    """
    with open_input(path) as file:
        if _kind_suffix(path) in JSON_SUFFIXES:
            for offset, line in _lines(file, start, stop):
                record = _parse_object(path, offset, line, text_key)
                yield Document(offset, record[text_key], record)
        elif sample_by == "line":
            for offset, line in _lines(file, start, stop):
                yield Document(offset, _decode(path, offset, line.rstrip(b"\r\n")))
        elif sample_by == "paragraph":
            for offset, lines in _paragraphs(file):
                yield Document(offset, _decode(path, offset, lines))
        else:
            yield Document(0, _decode(path, 0, file.read()))


@contextlib.contextmanager
def open_input(path: Path) -> Iterator[IO[bytes]]:
    """Yield the uncompressed bytes of `path`; raises UserError where the compressed data are damaged."""
    from zstandard import ZstdError

    from megalm.zst import open_zst

    try:
        with contextlib.ExitStack() as stack:
            file: Any = stack.enter_context(open(path, "rb", buffering=BUFFER))
            if path.suffix == ".gz":
                file = stack.enter_context(gzip.open(file))
            elif path.suffix == ".zst":
                file = stack.enter_context(open_zst(file))
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error, ZstdError) as error:
        raise UserError(f"{path} is damaged ({error}); compress it again from its source") from error


def _is_document(path: Path, directory: Path) -> bool:
    """Whether the file `path` below `directory` is read as one of its documents."""
    if _kind_suffix(path) not in JSON_SUFFIXES + TEXT_SUFFIXES:
        return False
    if any(part.startswith(".") for part in path.relative_to(directory).parts):
        return False
    return not (
        (path.name in (METADATA_NAME, *FILE_NAMES) and holds_tokenizer(path.parent))
        or (path.suffix == ".json" and path.with_suffix(".idx").exists())
        or (path.parent.suffix == BUILD_SUFFIX and path.with_name("plan.json").exists())
    )


def _kind_suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in COMPRESSED_SUFFIXES else path.suffix


def _lines(file: IO[bytes], start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    offset = start
    if start:
        file.seek(start - 1)
        offset += len(file.readline()) - 1  # the line that `start` cuts belongs to the range before
    while lines := file.readlines(LINES_AT_ONCE):
        for line in lines:
            if stop is not None and offset >= stop:
                return
            if not line.isspace():
                yield offset, line
            offset += len(line)


def _paragraphs(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    begin, offset, lines = 0, 0, []
    for line in file:
        if line.strip():
            lines.append(line)
        else:
            if lines:
                yield begin, b"".join(lines)
            begin, lines = offset + len(line), []
        offset += len(line)
    if lines:
        yield begin, b"".join(lines)


def _parse_object(path: Path, offset: int, line: bytes, text_key: str) -> dict[str, Any]:
    """Return the object of a line, with a text under `text_key`."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        value = _parse_leniently(path, offset, line)
    if isinstance(value, dict) and isinstance(value.get(text_key), str):
        return value
    if not isinstance(value, dict):
        found, mend = f"a {type(value).__name__}", "write one object a line"
    elif text_key in value:
        found, mend = f"a {type(value[text_key]).__name__}", "write a text there or leave the line out"
    else:
        found, mend = keys_of(value), "name the key that holds it"
    raise UserError(f"{where(path, offset)} has no text under '{text_key}' (found {found}); {mend}")


def _parse_leniently(path: Path, offset: int, line: bytes) -> Any:
    """Take what the standard library takes beyond the standard, such as NaN, and name what it refuses."""
    try:
        value = json.loads(_decode(path, offset, line))
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        problem = f"is not JSON ({error.msg}); write one object a line"
    except UnicodeEncodeError as error:
        problem = f"holds half a character ({error.object[error.start]!a}); write both halves or neither"
    except (ValueError, RecursionError) as error:
        problem = f"cannot be read ({error}); write one object a line"
    raise UserError(f"{where(path, offset)} {problem}")


def _decode(path: Path, offset: int, data: bytes) -> str:
    if not offset:
        data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where(path, offset)} is not UTF-8 ({error.reason}); convert the file to UTF-8"
        ) from error


def keys_of(record: dict[str, Any]) -> str:
    """Name the first keys of `record` on a line of an error message."""
    names = [" ".join(key.split()) for key in list(record)[:MOST_KEYS]]
    return f"keys {', '.join(names) or 'none'}{', ...' if len(record) > MOST_KEYS else ''}"


def where(path: Path, offset: int) -> str:
    """Name a place in a file for an error message: the path and the number of the line that begins there."""
    with open_input(path) as file:
        line = 1
        while offset > 0 and (block := file.read(min(offset, 1 << 20))):
            line += block.count(b"\n")
            offset -= len(block)
    return f"{path} line {line}"
