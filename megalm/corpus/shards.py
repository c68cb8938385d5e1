"""Document shards: JSONL files that appear whole or not at all, and the pipeline steps that read and write them."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import zstandard
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from megalm import atomic
from megalm.corpus.pages import raw_page
from megalm.errors import UserError
from megalm.zst import open_zst

SUFFIX = ".jsonl.zst"
_LEVEL = 3
_SURROGATES = re.compile("[\ud800-\udfff]")


def shard_paths(folder: str | Path) -> list[Path]:
    """The shards in `folder` and in the folders of a routed corpus within it, in order."""
    return sorted(path for pattern in (f"*{SUFFIX}", f"*/*{SUFFIX}") for path in Path(folder).glob(pattern))


def read_shard(path: str | Path) -> Iterator[Document]:
    """Yield the documents of one shard; UserError where it is damaged or cut short."""
    with open(path, "rb") as file, open_zst(file) as stream:
        lines = iter(stream)
        while True:
            try:
                line = next(lines, None)
            except (EOFError, zstandard.ZstdError) as error:
                raise UserError(f"shard {path} is damaged ({error}); copy or build it again") from error
            if line is None:
                return
            yield from_line(line)


def from_line(line: bytes) -> Document:
    """The document that a line of a shard holds."""
    value = orjson.loads(line)
    return Document(text=value["text"], id=value["id"], metadata=value.get("metadata") or {})


def to_line(document: Document) -> bytes:
    """The document as one line of JSON: id, text, metadata."""
    value: dict[str, Any] = {"id": document.id, "text": document.text, "metadata": document.metadata}
    options = orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS
    try:
        return orjson.dumps(value, default=str, option=options)
    except TypeError:  # half of a surrogate pair, which UTF-8 cannot hold, or a number of more than 64 bits
        return orjson.dumps(mend(value), default=str, option=options)


class ReadShards(PipelineStep):
    """Reads the shards of `folder`: task r of n has every n-th from the r-th on. `shard` is the name of the one at hand."""

    type = "corpus"
    name = "read shards"

    def __init__(self, folder: str | Path):
        super().__init__()
        self.folder = Path(folder)
        self.documents = 0
        self.shard = ""

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        """Yield the documents of this task's shards."""
        self.documents = 0
        for path in shard_paths(self.folder)[rank::world_size]:
            self.shard = path.name
            for document in read_shard(path):
                self.documents += 1
                yield document


class WriteShards(PipelineStep):
    """Writes the documents of a task as the shard `folder`/RANK.jsonl.zst, in one step at its end."""

    type = "corpus"
    name = "write shards"

    def __init__(self, folder: str | Path):
        super().__init__()
        self.folder = Path(folder)

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        """Write and pass on each document."""
        with open_shard(self.folder, rank) as stream:
            for document in data:
                if raw_page(document) is not None:
                    raise UserError(
                        f"document {document.id} is a raw page whose text is not extracted; "
                        "put the step `extract` before what needs the text"
                    )
                stream.write(to_line(document))
                yield document


class Removals:
    """Writes the removed documents of a task as one shard, step and reason in their metadata."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._stream: Any = None

    @contextlib.contextmanager
    def opened(self, rank: int) -> Iterator[None]:
        """Take documents while the block runs; the shard appears at its end."""
        with open_shard(self.folder, rank) as self._stream:
            yield
        self._stream = None

    def write(self, document: Document, step: str, reason: str) -> None:
        """Keep a removed document."""
        metadata = document.metadata | {"removed_by": step, "reason": reason}
        self._stream.write(to_line(Document(document.text, document.id, metadata=metadata)))


@contextlib.contextmanager
def open_shard(folder: Path, rank: int) -> Iterator[Any]:
    """Yield a stream for lines that become the shard of `rank` when the block ends well."""
    with open_shard_file(folder / f"{rank:05d}{SUFFIX}") as stream:
        yield stream


@contextlib.contextmanager
def open_shard_file(path: Path) -> Iterator[Any]:
    """Yield a stream for lines that become the shard `path` when the block ends well."""
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    with (
        atomic.open_atomic(path) as file,
        compressor.stream_writer(file, closefd=False) as stream,
    ):
        yield stream


def mend(value: Any) -> Any:
    """A value of JSON with U+FFFD for halves of surrogate pairs, and numbers that others can read."""
    if isinstance(value, str):
        return _SURROGATES.sub("\ufffd", value)
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return float(value) if abs(value) < 10**300 else str(value)
    if isinstance(value, dict):
        return {mend(key): mend(item) for key, item in value.items()}
    return [mend(item) for item in value] if isinstance(value, list | tuple) else value
