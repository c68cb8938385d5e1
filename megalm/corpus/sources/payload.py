"""The body of an HTTP answer: its encodings undone within a bound, and whether it is a page."""

import re
import zlib

MOST_ENCODINGS = 4
"""One in the other that are undone; a page that names thousands means to cost time."""
_END_OF_HEADERS = re.compile(rb"\r?\n\r?\n")
_PAGES = ("text/html", "application/xhtml")
_UNKNOWN = ("", "application/octet-stream", "unknown/unknown", "application/x-unknown-content-type")
_MARKS = (b"<!doctype", b"<html", b"<head", b"<body", b"<title", b"<meta", b"<?xml", b"<div", b"<p>", b"<!--")


def split_http(block: bytes) -> tuple[int | None, dict[str, str], bytes]:
    """Status, headers (names in lower case) and body of an answer; no status where the block is none."""
    if not block.startswith(b"HTTP/"):
        return None, {}, block
    end = _END_OF_HEADERS.search(block)
    head, body = (block, b"") if end is None else (block[: end.start()], block[end.end() :])
    lines = head.decode("utf-8", "replace").splitlines()
    status = lines[0].split(maxsplit=2)[1:2]
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(status[0]) if status and status[0].isdigit() else 200, headers, body


def decode_payload(data: bytes, transfer: str, encodings: str, limit: int) -> bytes | None:
    """Undo chunks and compression; None where more than `limit` bytes come out.

    Crawlers often store the decoded body beside the server's headers: what does not decode is taken as it is.
    """
    if "chunked" in transfer.lower():
        data = _join_chunks(data)
    for encoding in reversed([name.strip().lower() for name in encodings.split(",", MOST_ENCODINGS)]):
        decoded = _decompress(data, encoding, limit)
        if decoded is None:
            continue
        data = decoded
        if len(data) > limit:
            return None
    return data


def is_html(identified: str, declared: str, body: bytes) -> bool:
    """Whether a payload is a page: by what the crawler found, what the server said, or else how it begins."""
    for type in (identified, declared):
        name = type.partition(";")[0].strip().lower()
        if name not in _UNKNOWN:
            return name.startswith(_PAGES)
    head = body[:1024].lower()
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        head = head.replace(b"\0", b"")
    return b"\0" not in head and any(mark in head for mark in _MARKS)


def _join_chunks(data: bytes) -> bytes:
    """The body without chunk sizes; as it is where it has none. A body cut short gives what there is."""
    chunks: list[bytes] = []
    position = 0
    while True:
        line, found, _ = data[position : position + 64].partition(b"\r\n")
        try:
            size = int(line.partition(b";")[0], 16) if found else -1
        except ValueError:
            size = -1
        if size <= 0:
            return b"".join(chunks) if chunks or size == 0 else data
        position += len(line) + 2
        chunks.append(data[position : position + size])
        position += size + 2


def _decompress(data: bytes, encoding: str, limit: int) -> bytes | None:
    """Up to `limit` + 1 bytes of the decompressed data; None where it is not compressed so."""
    if encoding in ("gzip", "x-gzip", "deflate"):
        for window in (47, -15) if encoding == "deflate" else (47,):
            try:
                return zlib.decompressobj(window).decompress(data, limit + 1) or None
            except zlib.error:
                continue
    if encoding == "br":
        return _unbrotli(data, limit)
    if encoding == "zstd":
        return _unzstd(data, limit)
    return None


def _unbrotli(data: bytes, limit: int) -> bytes | None:
    import brotli

    decompressor, parts, size = brotli.Decompressor(), [], 0
    try:
        while size <= limit and not decompressor.is_finished():
            part = decompressor.process(data, output_buffer_limit=1 << 20)
            data = b""
            if not part:
                break
            parts.append(part)
            size += len(part)
    except brotli.error:
        return None
    return b"".join(parts)[: limit + 1] or None


def _unzstd(data: bytes, limit: int) -> bytes | None:
    import zstandard

    try:
        return zstandard.ZstdDecompressor().stream_reader(data).read(limit + 1) or None
    except zstandard.ZstdError:
        return None
