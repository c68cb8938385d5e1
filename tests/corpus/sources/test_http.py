"""Files over HTTP from a mirror on loopback: the same bytes whatever breaks off, and no endless trying."""

import email.utils
import gzip
import io
import json
import random
import time

import pytest

from megalm.corpus.sources import http
from megalm.corpus.sources.http import HttpFile
from megalm.errors import UserError
from tests.corpus.sources.mirror import dripping, dripping_headers, reply, serving
from tests.corpus.sources.reading import read
from tests.corpus.sources.test_warc import MEMBERS, ids, record

DATA = random.Random(0).randbytes(200_000)


@pytest.fixture
def mirror(tmp_path, waits):
    (tmp_path / "data.bin").write_bytes(DATA)
    with serving(tmp_path) as server:
        yield server


def test_what_breaks_off_is_taken_up_where_it_broke(mirror, waits):
    mirror.break_after = 30_000
    assert io.BufferedReader(HttpFile(f"{mirror.url}/data.bin")).read() == DATA
    begins = [int(asked[6:-1]) if asked else 0 for _, asked in mirror.requests]
    assert begins == sorted(set(begins)) == list(range(0, 200_000, 30_000))
    assert waits == [1.0] * 6  # each try gained bytes


def test_a_server_without_ranges_sends_again_what_was_read(mirror):
    mirror.ranges = False
    stream = io.BufferedReader(HttpFile(f"{mirror.url}/data.bin"))
    stream.seek(150_000)
    assert stream.read(100) == DATA[150_000:150_100]


def test_seeking_reads_what_a_local_file_would_give(mirror):
    stream = io.BufferedReader(HttpFile(f"{mirror.url}/data.bin"), 1000)
    for position, whence in ((50_000, 0), (10, 1), (-5, 2), (0, 0), (199_999, 0), (300_000, 0)):
        local = io.BytesIO(DATA)
        local.seek(stream.tell())
        assert stream.seek(position, whence) == local.seek(position, whence)
        assert stream.read(700) == local.read(700)


def test_busy_servers_are_asked_again_as_late_as_they_say(mirror, waits):
    mirror.faults = [
        (503, {"Retry-After": "7"}),
        (429, {}),
        (500, {"Retry-After": "nonsense"}),
        (503, {"Retry-After": "99999"}),
        (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        (503, {"Retry-After": email.utils.formatdate(time.time() + 30, usegmt=True)}),
    ]
    assert HttpFile(f"{mirror.url}/data.bin").read() == DATA
    assert waits[:5] == [7, 2, 4, 120, 0] and 20 < waits[5] <= 30 and len(waits) == 6
    for nonsense in ("\xb2", "-5", "Wed, 21 Oct 99999 07:28:00 GMT", "1e9"):
        assert http.retry_after(nonsense) is None


def test_trying_ends_and_mistakes_are_not_tried_again(mirror, waits):
    mirror.faults = [(503, {})] * 100
    with pytest.raises(UserError, match=r"could not be read from byte 0 on in 8 tries \(503"):
        HttpFile(f"{mirror.url}/data.bin").read()
    assert len(mirror.requests) == 8 and waits == [1, 2, 4, 8, 16, 32, 64]
    mirror.faults = []
    with pytest.raises(UserError, match="answered 404"):
        HttpFile(f"{mirror.url}/none").read()
    assert len(mirror.requests) == 9


def test_a_file_that_changes_half_way_is_refused(mirror):
    stream = io.BufferedReader(HttpFile(f"{mirror.url}/data.bin"), 1000)
    stream.read(10)
    mirror.etag = '"2"'
    with pytest.raises(UserError, match="has changed while it was read"):
        stream.seek(100_000)
        stream.read(10)


def test_a_nobody_is_an_error_of_one_line(waits):
    with serving(None) as server:
        url = server.url
    with pytest.raises(UserError, match="could not be read"):
        HttpFile(f"{url}/x").read()


def test_sources_take_addresses(mirror, tmp_path):
    lines = [json.dumps({"text": f"text {number}"}) for number in range(100)]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    documents, counters = read("jsonl", f"{mirror.url}/sub/a.jsonl.gz")
    assert [d.text for d in documents] == [f"text {number}" for number in range(100)] and counters == {}
    assert documents[0].id == "jsonl/sub/a.jsonl.gz#0"
    mirror.break_after = 500
    assert [d.text for d in read("jsonl", f"{mirror.url}/a.jsonl", 300)[0]] == [d.text for d in documents]


@pytest.fixture
def crawl(tmp_path, mirror):
    """A mirror of Common Crawl with three WARC files, the second damaged, and a WET file."""
    for kind in ("warc", "wet"):
        folder = tmp_path / "crawl-data/CC-1/seg"
        folder.mkdir(parents=True, exist_ok=True)
        names = [f"crawl-data/CC-1/seg/{number}.{kind}.gz" for number in range(3)]
        (tmp_path / f"crawl-data/CC-1/{kind}.paths.gz").write_bytes(gzip.compress("\n".join(names).encode()))
        for number, name in enumerate(names):
            members = list(MEMBERS) if kind == "warc" else [gzip.compress(record(7, kind="conversion"))]
            if number == 1:
                members[0] = members[0][:50] + b"damage" + members[0][56:]
            (tmp_path / name).write_bytes(b"".join(members))
    return mirror


@pytest.mark.parametrize("local", [False, True], ids=["mirror", "directory"])
def test_common_crawl_by_the_name_of_a_crawl(crawl, tmp_path, local):
    crawl.break_after = 700
    base = str(tmp_path) if local else f"{crawl.url}/"
    documents, counters = read("commoncrawl", "", crawl="CC-1", base_url=base, count=2)
    assert ids(documents) == [*"012345", *"12345"] and counters == {"broken": 1}
    assert documents[0].metadata["source"] == "commoncrawl"
    documents, counters = read("commoncrawl", "", crawl="CC-1", base_url=base, format="wet", first=2)
    assert ids(documents) == ["7"] and counters == {}
    with pytest.raises(UserError, match="has 3 files, none from 3 on"):
        read("commoncrawl", "", crawl="CC-1", base_url=base, first=3)
    with pytest.raises(UserError, match="404|no list of files"):
        read("commoncrawl", "", crawl="CC-2", base_url=base)


def test_ranges_shorter_than_asked_for_are_not_taken_for_the_end(mirror):
    mirror.break_after, mirror.slice = 50_000, 40_000
    assert io.BufferedReader(HttpFile(f"{mirror.url}/data.bin")).read() == DATA
    begins = [int(asked[6:-1]) if asked else 0 for _, asked in mirror.requests]
    assert begins == [0, *range(50_000, 200_000, 40_000)]


def test_another_range_than_asked_for_is_never_taken_for_it(mirror):
    def early(handler):
        reply(206, DATA[50:100], **{"Content-Range": "bytes 50-99/100"})(handler)

    mirror.answers["/early"] = early
    stream = HttpFile(f"{mirror.url}/early")
    stream.seek(70)
    assert stream.read() == DATA[70:100]
    for wrong in ("bytes 80-99/100", "bytes */100", "items 70-99/100", ""):
        mirror.answers["/late"] = reply(206, DATA[80:100], **{"Content-Range": wrong})
        stream = HttpFile(f"{mirror.url}/late")
        stream.seek(70)
        with pytest.raises(UserError, match="another range than it was asked for"):
            stream.read(1)


@pytest.mark.parametrize("length", ["", "abc", "-1"])
def test_a_file_without_a_usable_length_is_read_to_its_end(mirror, length):
    mirror.answers["/x"] = reply(200, DATA[:1000], **{"Content-Length": length})
    assert io.BufferedReader(HttpFile(f"{mirror.url}/x")).read() == DATA[:1000]
    mirror.answers["/x"] = lambda handler: reply(
        416 if handler.headers["Range"] else 200, **{"Content-Length": ""}
    )(handler)
    stream = HttpFile(f"{mirror.url}/x")
    stream.seek(5000)
    assert stream.read(10) == b""


def test_a_length_that_promises_too_much_ends_in_an_error_and_never_in_a_short_file(mirror, waits):
    mirror.answers["/x"] = reply(200, DATA[:1000], **{"Content-Length": "2000"})
    with pytest.raises(UserError, match="could not be read from byte 1000 on in 8 tries"):
        io.BufferedReader(HttpFile(f"{mirror.url}/x")).read()
    assert len(waits) == 7


def test_what_a_server_compresses_on_the_way_is_read_or_refused(mirror, tmp_path):
    lines = "\n".join(json.dumps({"text": f"text {number}"}) for number in range(100)).encode()
    mirror.answers["/a.jsonl"] = reply(200, gzip.compress(lines), **{"Content-Encoding": "gzip"})
    documents, counters = read("jsonl", f"{mirror.url}/a.jsonl", 100)
    assert [d.text for d in documents] == [f"text {number}" for number in range(100)] and counters == {}
    mirror.answers["/b.jsonl.gz?x=1"] = reply(200, gzip.compress(lines), **{"Content-Encoding": "x-gzip"})
    assert len(read("jsonl", f"{mirror.url}/b.jsonl.gz?x=1", 100)[0]) == 100
    mirror.answers["/a.jsonl"] = reply(200, lines, **{"Content-Encoding": "br"})
    with pytest.raises(UserError, match=r"compresses it on the way \(br\), though asked not to; download it"):
        read("jsonl", f"{mirror.url}/a.jsonl")


def test_redirects_are_followed_on_the_host_alone(mirror, waits, tmp_path):
    mirror.answers["/old"] = reply(302, Location="/data.bin")
    stream = HttpFile(f"{mirror.url}/old")
    stream.seek(199_990)
    assert stream.read(100) == DATA[199_990:]
    with serving(tmp_path) as other:
        for target in (f"{other.url}/data.bin", "ftp://127.0.0.1/data.bin", "http://127.0.0.1.:1/data.bin"):
            mirror.answers["/old"] = reply(301, Location=target)
            with pytest.raises(UserError, match="the server sends on to another host, .*; give that address"):
                HttpFile(f"{mirror.url}/old").read()
        assert other.requests == []
    for target in ("file:///etc/passwd", "/old", "javascript:x"):
        mirror.answers["/old"] = reply(302, Location=target)
        with pytest.raises(UserError, match="the server answered 302 .*; check the address") as caught:
            HttpFile(f"{mirror.url}/old").read()
        assert "\n" not in str(caught.value)
    assert waits == []


def test_addresses_are_quoted_and_what_is_none_is_refused_at_once(mirror, waits, tmp_path):
    (tmp_path / "grüße 1.txt").write_text("hello")
    assert [d.text for d in read("text", f"{mirror.url}/grüße 1.txt")[0]] == ["hello"]
    port = mirror.server_port
    for bad in (
        f"http://me:secret@127.0.0.1:{port}/x",
        "http://127.0.0.1:port/x",
        "http://a..b/x",
        "http://[::1/x",
    ):
        with pytest.raises(UserError, match="is no address that can be asked for"):
            HttpFile(bad).read()
    assert waits == []


@pytest.mark.parametrize("slow", [dripping, dripping_headers])
def test_a_server_that_sends_a_byte_now_and_then_is_given_up(mirror, monkeypatch, slow):
    monkeypatch.setattr(http, "BLOCK_SECONDS", 0.1)
    mirror.answers["/x"] = slow
    with pytest.raises(
        UserError, match=r"could not be read from byte 0 on in 8 tries \(no end after 0.1 s\)"
    ):
        HttpFile(f"{mirror.url}/x").read()
    assert HttpFile(f"{mirror.url}/data.bin").read() == DATA
