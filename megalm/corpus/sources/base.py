"""What all sources share: the files they name, and reading them without trusting them."""

import glob
import gzip
import io
import zlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import zstandard
from datatrove.data import Document
from pydantic import Field

from megalm.config.section import Section
from megalm.corpus.sources.http import HttpFile, file_name, is_url
from megalm.errors import UserError
from megalm.zst import open_zst

COMPRESSED = (".gz", ".zst")
_BLOCK = 1 << 20
DAMAGES = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)


class InputFile(NamedTuple):
    """A file as it was when the build was planned; `name` is its path below the source's own."""

    path: str
    name: str
    size: int
    modified_ns: int


class Part(NamedTuple):
    """What a task reads of a file: the documents that begin in bytes [start, stop)."""

    source: int
    file: InputFile
    start: int
    stop: int | None

    @property
    def size(self) -> int:
        """How many bytes it is."""
        return (self.file.size if self.stop is None else self.stop) - self.start


class Source(Section):
    """A source: files, and how documents are read from them.

    What cannot be read is left out and counted under `counters`, never an error: `broken` (damaged or not in the
    form it should have), `truncated` (cut short), `too_large` (over `max_document_bytes`, which also bounds the
    memory used) and `invalid_utf8` (read, with U+FFFD in the places that could not be).
    """

    kind: str = Field(description="What the files are.")
    path: str | list[str] = Field(
        description="Files, directories (read with all below them), patterns such as crawl/*.warc.gz, or addresses."
    )
    name: str = Field(
        "",
        description="Goes into each document's metadata as `source`; by default what is there, else the kind.",
    )
    max_document_bytes: int = Field(
        16 << 20, ge=1, description="Documents of more bytes are left out and counted as too_large."
    )

    suffixes: ClassVar[tuple[str, ...]] = ()
    """Endings of the files taken from directories, before .gz or .zst; all files if empty."""

    @property
    def gives_pages(self) -> bool:
        """Whether documents are raw pages, whose text must be extracted."""
        return False

    @property
    def label(self) -> str:
        """The name, or else the kind."""
        return self.name or self.kind

    def set_output(self, output: Path) -> None:
        """Told where the corpus is made, before anything else is asked; most sources need not know."""

    def files(self) -> list[InputFile]:
        """The files named, in order of path; raises UserError where there is none."""
        found: dict[str, InputFile] = {}
        for pattern in [self.path] if isinstance(self.path, str) else self.path:
            if not pattern:
                raise UserError(f"source `{self.label}`: a path is empty; write . for the working directory")
            if is_url(pattern):
                with HttpFile(pattern) as file:  # what is compressed on the way cannot be cut
                    size = 0 if file.encoding() else file.size() or 0
                found[pattern] = InputFile(pattern, file_name(pattern).strip("/"), size, 0)
                continue
            for path, root in self._match(pattern):
                status = path.stat()
                name = path.relative_to(root).as_posix()
                found[str(path)] = InputFile(str(path.absolute()), name, status.st_size, status.st_mtime_ns)
        if not found:
            endings = " ".join(self.suffixes) or "any"
            raise UserError(f"source `{self.label}`: no files in {self.path} (endings looked for: {endings})")
        return [found[path] for path in sorted(found)]

    def takes(self, path: Path) -> bool:
        """Whether a file found in a directory, here relative to it, belongs to this source."""
        stem = path.stem if path.suffix in COMPRESSED else path.name
        return not self.suffixes or stem.lower().endswith(self.suffixes)

    def cut(self, number: int, file: InputFile, size: int) -> list[Part]:
        """The parts, of about `size` bytes where the form allows it, that tasks may read apart."""
        return [Part(number, file, 0, None)]

    @abstractmethod
    def read(self, part: Part, counters: Counter[str]) -> Iterator[Document]:
        """Yield the documents of a part, in order, counting in `counters` what was left out."""

    def document(self, file: InputFile, number: int | None, text: str, metadata: dict[str, Any]) -> Document:
        """A document with an id made of the source, the file and the number in it."""
        id = f"{self.label}/{file.name}" if number is None else f"{self.label}/{file.name}#{number}"
        return Document(
            text=text,
            id=id,
            metadata=metadata | {"source": self.name or metadata.get("source") or self.label},
        )

    def _match(self, pattern: str) -> Iterator[tuple[Path, Path]]:
        """Each file that `pattern` names, with the directory that its name is relative to."""
        path = Path(pattern).expanduser()
        if path.is_dir():
            for below in sorted(path.rglob("*")):
                if below.is_file() and self.takes(below.relative_to(path)):
                    yield below, path
        elif path.exists():
            yield path, path.parent
        else:
            matches = sorted(glob.glob(str(path), recursive=True))
            if not matches:
                raise UserError(f"source `{self.label}`: {pattern} does not exist; check the path")
            yield from ((match, match.parent) for match in map(Path, matches) if match.is_file())


def open_binary(path: str) -> Any:
    """The bytes of a file or an address."""
    return io.BufferedReader(HttpFile(path), _BLOCK) if is_url(path) else open(path, "rb")


def open_stream(path: str) -> Any:
    """The uncompressed bytes of a file or an address; reading may raise one of DAMAGES."""
    name, encoding = file_name(path), ""
    if name.endswith(".gz") and not is_url(path):
        return gzip.open(path)
    stream = open_binary(path)
    if is_url(path):
        encoding = stream.raw.encoding()
    if encoding not in ("", "gzip"):
        raise UserError(
            f"{path}: the server compresses it on the way ({encoding}), though asked not to; download it"
        )
    if encoding or name.endswith(".gz"):
        return gzip.open(stream)
    if name.endswith(".zst"):
        return open_zst(stream)
    return stream


def read_whole(path: str, limit: int, counters: Counter[str]) -> bytes | None:
    """The uncompressed bytes of a file; None where it is damaged or holds more than `limit`."""
    try:
        with open_stream(path) as stream:
            data = stream.read(limit + 1)
    except DAMAGES:
        counters["broken"] += 1
        return None
    if len(data) > limit:
        counters["too_large"] += 1
        return None
    return data


def read_lines(
    path: str, start: int, stop: int | None, limit: int, counters: Counter[str]
) -> Iterator[tuple[int, bytes]]:
    """The lines that begin in bytes [start, stop) with where they begin; longer ones than `limit` are left out."""
    with open_binary(path) if start else open_stream(path) as stream:  # what is compressed is not cut
        try:
            offset = start
            if start:
                stream.seek(start - 1)  # a line that `start` cuts belongs to the part before
                offset += _skip_line(stream, None if stop is None else stop - start + 1) - 1
            while stop is None or offset < stop:
                line = stream.readline(limit + 1)
                if not line:
                    return
                begin, offset = offset, offset + len(line)
                if len(line) > limit and not line.endswith(b"\n"):
                    counters["too_large"] += 1
                    offset += _skip_line(stream, None if stop is None else stop - offset)
                else:
                    yield begin, line
        except DAMAGES:
            counters["broken"] += 1


def decode(data: bytes, counters: Counter[str]) -> str:
    """UTF-8 text; bytes that are none become U+FFFD and are counted."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        counters["invalid_utf8"] += 1
        return data.decode("utf-8", "replace")


def _skip_line(stream: Any, most: int | None) -> int:
    """Pass over the rest of a line, or at least `most` bytes of it, in blocks; how many bytes it was."""
    skipped = 0
    while (most is None or skipped < most) and (block := stream.readline(_BLOCK)):
        skipped += len(block)
        if block.endswith(b"\n"):
            break
    return skipped
