"""Plain text and Markdown files."""

from collections import Counter
from collections.abc import Iterator
from typing import Literal

from datatrove.data import Document
from pydantic import Field

from megalm.corpus.sources.base import COMPRESSED, InputFile, Part, Source, decode, read_lines, read_whole
from megalm.tokenizer.documents import SampleBy


class PlainText(Source):
    """Text or Markdown files: a document is a file, a paragraph (lines up to an empty one) or a line."""

    kind: Literal["text"] = Field("text", description="What the files are.")
    sample_by: SampleBy = Field(
        "document", description="What a document is: document (the file), paragraph or line."
    )
    suffixes = (".txt", ".text", ".md", ".markdown", ".rst")

    def cut(self, number: int, file: InputFile, size: int) -> list[Part]:
        """Ranges of bytes where a line is a document, else the file."""
        if self.sample_by != "line":
            return super().cut(number, file, size)
        return cut_lines(number, file, size)

    def read(self, part: Part, counters: Counter[str]) -> Iterator[Document]:
        """Yield the documents of a part; blank ones are passed over."""
        file, limit = part.file, self.max_document_bytes
        if self.sample_by == "document":
            data = read_whole(file.path, limit, counters)
            if data is not None and (text := decode(data, counters)).strip():
                yield self.document(file, None, text, {"path": file.name})
            return
        lines = read_lines(file.path, part.start, part.stop, limit, counters)
        pieces = lines if self.sample_by == "line" else _paragraphs(lines, limit, counters)
        for offset, data in pieces:
            if text := decode(data, counters).strip():
                yield self.document(file, offset, text, {"path": file.name})


def cut_lines(number: int, file: InputFile, size: int) -> list[Part]:
    """Ranges of about `size` bytes of a file of lines; all of it where it is compressed."""
    if file.name.endswith(COMPRESSED) or file.size <= size:
        return [Part(number, file, 0, None)]
    starts = range(0, file.size, size)
    return [Part(number, file, start, start + size if start + size < file.size else None) for start in starts]


def _paragraphs(
    lines: Iterator[tuple[int, bytes]], limit: int, counters: Counter[str]
) -> Iterator[tuple[int, bytes]]:
    begin, size = 0, 0
    kept: list[bytes] = []
    for offset, line in lines:
        if not line.strip():
            yield from _whole(begin, size, kept, limit, counters)
            size, kept = 0, []
            continue
        if not size:
            begin = offset
        size += len(line)
        if size <= limit:
            kept.append(line)
    yield from _whole(begin, size, kept, limit, counters)


def _whole(
    begin: int, size: int, kept: list[bytes], limit: int, counters: Counter[str]
) -> Iterator[tuple[int, bytes]]:
    if size > limit:
        counters["too_large"] += 1
    elif kept:
        yield begin, b"".join(kept)
