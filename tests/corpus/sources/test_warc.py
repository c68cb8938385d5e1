"""WARC and WET: every page is found, what is damaged is counted once and nothing else is lost."""

import gzip
import io
import zlib

import brotli
import pytest
import zstandard
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from megalm.corpus.pages import raw_page
from tests.corpus.sources.reading import read

PAGE = b"<html><body>page number %d</body></html>" + b"." * 3000


def record(number: int, *, kind: str = "response", headers: str = "Content-Type: text/html", status: str = "200 OK",
           body: bytes | None = None, extra: str = "") -> bytes:  # fmt: skip
    """One record, written by hand so that it can be damaged by hand."""
    block = PAGE % number if body is None else body
    if kind == "response":
        block = f"HTTP/1.1 {status}\r\n{headers}\r\n\r\n".encode() + block
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{number}>\r\n"
        f"WARC-Target-URI: http://site/{number}\r\nWARC-Date: 2020-01-01T00:00:00Z\r\n{extra}"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def read_bytes(tmp_path, data: bytes, name: str = "crawl.warc", kind: str = "warc", **options):
    path = tmp_path / name
    path.write_bytes(data)
    return read(kind, path, **options)


def ids(documents) -> list[str]:
    return [document.id for document in documents]


RECORDS = [record(number) for number in range(6)]
MEMBERS = [gzip.compress(data, mtime=0) for data in RECORDS]


@pytest.mark.parametrize("data", [RECORDS, MEMBERS, [gzip.compress(b"".join(RECORDS))]])
def test_pages_come_with_bytes_url_date_and_content_type(tmp_path, data):
    documents, counters = read_bytes(tmp_path, b"".join(data), name="a")
    assert ids(documents) == list("012345") and counters == {}
    assert raw_page(documents[3]) == (PAGE % 3, "text/html") and documents[3].text == ""
    assert documents[3].metadata == {"url": "http://site/3", "source": "warc", "date": "2020-01-01T00:00:00Z"}


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


@pytest.mark.parametrize("position", [0, 2, 12, 40, -6, -2])
def test_a_damaged_member_is_counted_once_and_the_rest_is_read(tmp_path, position):
    members = list(MEMBERS)
    members[2] = flipped(members[2], position % len(members[2]))
    documents, counters = read_bytes(tmp_path, b"".join(members), "a.warc.gz")
    assert ids(documents) == list("01345") and counters == {"broken": 1}


def test_damage_at_both_ends_and_in_neighbours(tmp_path):
    members = [
        flipped(member, 40) if number in (0, 2, 3, 5) else member for number, member in enumerate(MEMBERS)
    ]
    documents, counters = read_bytes(tmp_path, b"".join(members), "a.warc.gz")
    assert ids(documents) == list("14") and counters["broken"] in (3, 4)


@pytest.mark.parametrize("left", [1, 5, 11, 30, 60, 100, 200, -12])
def test_a_truncated_gzip_file_loses_its_last_record_only(tmp_path, left):
    documents, counters = read_bytes(tmp_path, b"".join(MEMBERS[:5]) + MEMBERS[5][:left], "a.warc.gz")
    assert ids(documents) == list("01234") and sum(counters.values()) == 1


@pytest.mark.parametrize("left", [1, 8, 50, 200, 300, 2000])
def test_a_truncated_plain_file_loses_its_last_record_only(tmp_path, left):
    documents, counters = read_bytes(tmp_path, b"".join(RECORDS[:5]) + RECORDS[5][:left])
    assert ids(documents) == list("01234") and sum(counters.values()) == 1


def test_garbage_between_records_and_wrong_lengths_lose_nothing_else(tmp_path):
    documents, counters = read_bytes(tmp_path, RECORDS[0] + b"garbage\r\n" * 3 + RECORDS[1])
    assert ids(documents) == list("01") and counters == {"broken": 1}
    wrong = RECORDS[1].replace(b"Content-Length: 3", b"Content-Length: 4")
    documents, counters = read_bytes(tmp_path, RECORDS[0] + wrong + RECORDS[2] + RECORDS[3])
    assert ids(documents) == list("0123") and counters == {"broken": 1}
    none = RECORDS[1].replace(b"Content-Length", b"Content-Lungth")
    documents, counters = read_bytes(tmp_path, RECORDS[0] + none + RECORDS[2])
    assert ids(documents) == list("02") and counters == {"broken": 1}


def test_what_is_no_warc_file_is_counted_and_not_fatal(tmp_path):
    for data in (b"hello\nthis is text\n", bytes(range(256)) * 20, gzip.compress(b"text" * 100)):
        assert read_bytes(tmp_path, data) == ([], {"broken": 1})
    assert read_bytes(tmp_path, b"") == ([], {})


def test_no_page_is_lost_for_want_of_a_type(tmp_path):
    records = [
        record(0, headers="Server: x"),
        record(1, headers="Content-Type: application/octet-stream"),
        record(2, headers="Content-Type: TEXT/HTML; charset=x"),
        record(3, headers="Content-Type: application/xhtml+xml"),
        record(4, headers="Content-Type: text/plain", extra="WARC-Identified-Payload-Type: text/html\r\n"),
        record(5, headers="Server: x", body="<!DOCTYPE html><p>ü".encode("utf-16")),
    ]
    documents, counters = read_bytes(tmp_path, b"".join(records))
    assert ids(documents) == list("012345") and counters == {}


def test_what_is_no_page_is_counted(tmp_path):
    records = [
        record(0, headers="Content-Type: image/png"),
        record(1, headers="Server: x", body=b"\x89PNG\0\0<html>"),
        record(2, status="404 Not Found"),
        record(3, status="301 Moved"),
        record(4, kind="request"),
        record(5, kind="revisit"),
    ]
    assert read_bytes(tmp_path, b"".join(records)) == ([], {"not_html": 2, "not_ok": 2})


def chunked(data: bytes) -> bytes:
    pieces = [data[at : at + 1000] for at in range(0, len(data), 1000)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        ("Content-Encoding: gzip", gzip.compress),
        ("Content-Encoding: deflate", zlib.compress),
        ("Content-Encoding: deflate", lambda data: zlib.compress(data, wbits=-15)),
        ("Content-Encoding: br", brotli.compress),
        ("Content-Encoding: zstd", zstandard.compress),
        ("Transfer-Encoding: chunked", chunked),
        ("Transfer-Encoding: chunked\r\nContent-Encoding: gzip", lambda data: chunked(gzip.compress(data))),
    ],
)
def test_encodings_of_the_transfer_are_undone_or_were_not_there(tmp_path, encoding, encode):
    headers = f"Content-Type: text/html\r\n{encoding}"
    records = [record(0, headers=headers, body=encode(PAGE % 0)), record(1, headers=headers)]
    documents, _ = read_bytes(tmp_path, b"".join(records))
    assert [raw_page(document)[0] for document in documents] == [PAGE % 0, PAGE % 1]


@pytest.mark.parametrize("compress", [gzip.compress, brotli.compress, zstandard.compress])
def test_bombs_and_giants_are_counted_within_bounded_memory(tmp_path, compress):
    import tracemalloc

    name = {gzip.compress: "gzip", brotli.compress: "br"}.get(compress, "zstd")
    bomb = record(0, headers=f"Content-Encoding: {name}", body=compress(b"<html>" + b"a" * 30_000_000))
    giant = record(1, body=b"<html>" + b"a" * 3_000_000)
    tracemalloc.start()
    documents, counters = read_bytes(
        tmp_path, b"".join(map(gzip.compress, (bomb, giant, RECORDS[2]))), max_document_bytes=1_000_000
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ids(documents) == ["2"] and counters == {"too_large": 2}
    assert peak < 20_000_000


def test_files_of_another_writer_are_read(tmp_path):
    stream = io.BytesIO()
    writer = WARCWriter(stream, gzip=True)
    for number in range(3):
        headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.0")
        writer.write_record(
            writer.create_warc_record(
                f"http://a/{number}", "response", io.BytesIO(PAGE % number), http_headers=headers
            )
        )
    documents, counters = read_bytes(tmp_path, stream.getvalue(), "a.warc.gz")
    assert [raw_page(document)[0] for document in documents] == [PAGE % n for n in range(3)]
    assert counters == {} and len(set(ids(documents))) == 3


def test_wet_texts_even_with_bare_line_feeds_and_invalid_utf8(tmp_path):
    texts = [
        record(0, kind="conversion", body="grüße".encode()),
        record(1, kind="conversion", body=b"gr\xfc\xdfe"),
    ]
    documents, counters = read_bytes(tmp_path, b"".join([record(9, kind="warcinfo"), *texts]), kind="wet")
    assert [document.text for document in documents] == ["grüße", "gr\ufffd\ufffde"]
    assert counters == {"invalid_utf8": 1} and documents[0].metadata["url"] == "http://site/0"
    bare = b"".join(data.replace(b"\r\n", b"\n") for data in texts)
    documents, _ = read_bytes(tmp_path, bare, kind="wet")
    assert [document.text for document in documents] == ["grüße", "gr\ufffd\ufffde"]
