"""WARC files of crawled pages, and WET files of their texts; what is damaged in them is skipped and counted."""

import zlib
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any, Literal

from datatrove.data import Document
from pydantic import Field

from megalm.corpus.pages import page_document
from megalm.corpus.sources.base import InputFile, Part, Source, decode
from megalm.corpus.sources.payload import decode_payload, is_html

_GZIP = b"\x1f\x8b\x08"
_RECORD = b"WARC/"
_BLOCK = 1 << 20


class Warc(Source):
    """WARC files: a document is an HTML page that a server answered with, as raw bytes for the extraction.

    Whether a response is a page is read from WARC-Identified-Payload-Type, else from the server's Content-Type, else
    from the first bytes of the payload. Counted: `not_ok` (an answer other than 2xx) and `not_html`.
    """

    kind: Literal["warc"] = Field("warc", description="What the files are.")
    suffixes = (".warc",)
    gives_pages = True

    def read(self, part: Part, counters: Counter[str]) -> Iterator[Document]:
        """Yield the pages of a file."""
        for record, payload in read_records(part.file, self.max_document_bytes, counters):
            kind = record.record_type.name
            if kind not in ("response", "resource"):
                continue
            headers = record.http_headers
            status = headers.status_code if headers is not None else None
            if status is not None and not 200 <= status < 300:
                counters["not_ok"] += 1
                continue
            get = headers.get if headers is not None else lambda name, default="": default
            body = decode_payload(
                payload, get("Transfer-Encoding", ""), get("Content-Encoding", ""), self.max_document_bytes
            )
            if body is None:
                counters["too_large"] += 1
                continue
            content_type = get("Content-Type", "") or (
                record.headers.get("Content-Type", "") if kind == "resource" else ""
            )
            if not is_html(record.headers.get("WARC-Identified-Payload-Type", ""), content_type, body):
                counters["not_html"] += 1
                continue
            yield page_document(
                record_id(record, part.file),
                record.headers.get("WARC-Target-URI", "").strip("<>"),
                body,
                content_type,
                {"source": self.label, "date": record.headers.get("WARC-Date", "")},
            )


class Wet(Source):
    """WET files of Common Crawl: a document is the text of a page."""

    kind: Literal["wet"] = Field("wet", description="What the files are.")
    suffixes = (".wet", ".warc.wet.txt")

    def read(self, part: Part, counters: Counter[str]) -> Iterator[Document]:
        """Yield the texts of a file."""
        for record, payload in read_records(part.file, self.max_document_bytes, counters):
            if record.record_type.name == "conversion":
                metadata = {
                    "source": self.label,
                    "url": record.headers.get("WARC-Target-URI", ""),
                    "date": record.headers.get("WARC-Date", ""),
                }
                yield Document(decode(payload, counters), record_id(record, part.file), metadata=metadata)


def record_id(record: Any, file: InputFile) -> str:
    """The record's own id, or the file and the place in it."""
    id = record.record_id or ""
    return id.strip("<>").removeprefix("urn:uuid:") or f"{file.name}#{record.stream_pos}"


def read_records(file: InputFile, limit: int, counters: Counter[str]) -> Iterator[tuple[Any, bytes]]:
    """Yield each whole record with its payload, still in the transfer's encodings.

    The library stops at the first damage; reading goes on at the next place that looks like the beginning of a
    record. Counted: `broken` (a stretch without a readable record), `truncated` (shorter than its header says) and
    `too_large` (over `limit` bytes).
    """
    from fastwarc.warc import ArchiveIterator

    damaged = False
    start: int | None = 0
    with open(file.path, "rb") as stream:
        while start is not None:
            last = start
            stream.seek(start)
            try:
                for record in ArchiveIterator(stream, auto_decode="none", quirks_mode=True):
                    last = start + record.stream_pos
                    expected = record.content_length
                    if expected > limit:
                        counters["too_large"] += 1
                        continue
                    payload = record.reader.read()
                    if len(payload) != expected:
                        counters["truncated"] += 1
                        continue
                    counters["broken"] += damaged
                    damaged = False
                    yield record, payload
                break
            except OSError:
                counters["broken"] += damaged and last == start
                damaged = True
                start = _next_record(stream, last + 1)
    counters["broken"] += damaged


def _next_record(stream: IO[bytes], position: int) -> int | None:
    """Where after `position` a record or a compressed record seems to begin."""
    overlap = b""
    stream.seek(position)
    while block := stream.read(_BLOCK):
        data = overlap + block
        base = stream.tell() - len(data)
        at = -1
        while (at := _nearest(data, at + 1)) >= 0:
            if _begins_record(stream, base + at):
                return base + at
        overlap = data[-8:]
        stream.seek(base + len(data))
    return None


def _nearest(data: bytes, begin: int) -> int:
    found = [at for mark in (_GZIP, _RECORD) if (at := data.find(mark, begin)) >= 0]
    return min(found, default=-1)


def _begins_record(stream: IO[bytes], position: int) -> bool:
    stream.seek(max(0, position - 1))
    before = stream.read(1) if position else b"\n"
    head = stream.read(512)
    if head.startswith(_RECORD):
        return before == b"\n"
    try:
        return zlib.decompressobj(31).decompress(head, len(_RECORD)) == _RECORD
    except zlib.error:
        return False
