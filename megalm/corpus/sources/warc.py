"""WARC files of crawled pages, and WET files of their texts; what is damaged in them is skipped and counted."""

import re
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any, Literal

from datatrove.data import Document
from pydantic import Field

from megalm.corpus.pages import page_document
from megalm.corpus.sources.base import InputFile, Part, Source, decode, open_binary
from megalm.corpus.sources.payload import decode_payload, is_html, split_http

_GZIP = b"\x1f\x8b\x08"
_RECORD = b"WARC/"
_END_OF_HEADERS = re.compile(rb"\r?\n\r?\n")
_LENGTH = re.compile(rb"\ncontent-length:\s*(\d{1,18})", re.IGNORECASE)
_BLOCK = 1 << 20


class Warc(Source):
    """WARC files: a document is an HTML page that a server answered with, as raw bytes for the extraction.

    Whether a response is a page is read from WARC-Identified-Payload-Type, else from the server's Content-Type, else
    from the first bytes of the payload. Counted: `not_ok` (an answer other than 2xx) and `not_html`.
    """

    kind: Literal["warc"] = Field("warc", description="What the files are.")
    suffixes = (".warc",)

    @property
    def gives_pages(self) -> bool:
        """They are."""
        return True

    def read(self, part: Part, counters: Counter[str]) -> Iterator[Document]:
        """Yield the pages of a file."""
        for record, block in read_records(part.file, "pages", self.max_document_bytes, counters):
            status, headers, payload = split_http(block)
            if status is not None and not 200 <= status < 300:
                counters["not_ok"] += 1
                continue
            body = decode_payload(
                payload,
                headers.get("transfer-encoding", ""),
                headers.get("content-encoding", ""),
                self.max_document_bytes,
            )
            if body is None:
                counters["too_large"] += 1
                continue
            content_type = headers.get("content-type", "")
            if status is None:  # a resource: the block is the page
                content_type = record.headers.get("Content-Type", "")
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
        for record, payload in read_records(part.file, "texts", self.max_document_bytes, counters):
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


def read_records(
    file: InputFile, wanted: Literal["pages", "texts"], limit: int, counters: Counter[str]
) -> Iterator[tuple[Any, bytes]]:
    """Yield each whole record of responses and resources, or of extracted texts, with its block of bytes.

    The library stops at the first damage; reading goes on at the next place that looks like the beginning of a
    record. Counted: `broken` (a stretch without a readable record), `truncated` (shorter than its header says) and
    `too_large` (over `limit` bytes).
    """
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    kinds = (
        (WarcRecordType.response, WarcRecordType.resource)
        if wanted == "pages"
        else (WarcRecordType.conversion,)
    )
    damaged = False
    start: int | None = 0
    with open_binary(file.path) as stream:
        # Lenient reading takes files with bare line feeds, but would hide damage in others.
        first = _first_line(stream)
        lenient = first.startswith(_RECORD) and not first.endswith(b"\r\n")
        while start is not None:
            last = start
            readable = False
            stream.seek(start)
            try:
                for record in ArchiveIterator(stream, parse_http=False, quirks_mode=lenient):
                    last, readable = start + record.stream_pos, True
                    length = (record.headers.get("Content-Length") or "").strip()
                    counters["broken"] += damaged
                    damaged = not length.isdigit()
                    if damaged or record.record_type not in kinds:
                        continue
                    if record.content_length > limit:
                        counters["too_large"] += 1
                        continue
                    block = record.reader.read()
                    if len(block) != int(length):
                        counters["truncated"] += 1
                    else:
                        yield record, block
                counters["broken"] += readable and _something_follows(stream, last)
                break
            except OSError:
                counters["broken"] += not readable
                damaged = readable  # what broke may be the very record that reading starts from next
                start = _next_record(stream, last + 1)
    counters["broken"] += damaged


def _first_line(stream: IO[bytes]) -> bytes:
    head = stream.read(4096)
    if head.startswith(_GZIP):
        try:
            head = zlib.decompressobj(31).decompress(head, 1024)
        except zlib.error:
            return b""
    line, end, _ = head.partition(b"\n")
    return line + end


def _something_follows(stream: IO[bytes], position: int) -> bool:
    """Whether the file goes on after the record at `position`, where the library took the rest for its end."""
    stream.seek(position)
    data = stream.read(_BLOCK)
    if data.startswith(_RECORD):
        end, length = _END_OF_HEADERS.search(data), _LENGTH.search(data)
        if end is None or length is None:
            return False
        stream.seek(position + end.end() + int(length[1]))
        return bool(stream.read(64).strip())
    if not data.startswith(_GZIP):
        return False
    member = zlib.decompressobj(31)
    while data and not member.eof:
        member.decompress(data, _BLOCK)
        data = member.unconsumed_tail or (b"" if member.eof else stream.read(_BLOCK))
    return member.eof and bool(member.unused_data.strip(b"\0") or stream.read(1))


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
