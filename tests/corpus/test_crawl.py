"""The crawler on a loopback site: robots.txt obeyed, slow, on one host, within the limit, and on after a kill."""

import os
import signal

import pytest

from megalm.corpus import crawl as module
from megalm.corpus import fetch
from megalm.corpus.crawl import crawl
from megalm.corpus.links import links_in, normalize
from megalm.corpus.pages import raw_page
from megalm.errors import UserError
from tests.corpus.sources.reading import read
from tests.corpus.sources.test_warc import MEMBERS
from tests.corpus.web_site import asked_for, pages_of


def test_a_site_is_read_breadth_first_as_its_robots_allow(site, tmp_path, waits):
    counts = crawl(f"{site.url}/index.html", tmp_path / "out.warc.gz", delay=1.5)
    assert pages_of(tmp_path / "out.warc.gz", site) == ["index.html", "a.html", "b.html", "c.html"]
    assert asked_for(site) == ["robots.txt", "index.html", "a.html", "b.html", "missing.html", "c.html"]
    assert counts == {"pages": 4, "forbidden_by_robots": 2, "failed": 1, "off_host": 1, "not_visited": 0}
    assert waits == [1.5] * 5  # before each request but the first
    document = read("warc", tmp_path / "out.warc.gz")[0][2]
    assert raw_page(document) == (b"<html><body>the end</body></html>", "")
    assert not (tmp_path / "out.warc.gz.partial").exists()


def test_crawl_delay_and_page_limit(site, tmp_path, waits):
    (tmp_path / "site/robots.txt").write_text(
        "User-agent: megalm\nCrawl-delay: 9\nUser-agent: *\nDisallow: /\n"
    )
    counts = crawl(f"{site.url}/index.html", tmp_path / "out.warc.gz", max_pages=2)
    assert counts["pages"] == 2 == len(pages_of(tmp_path / "out.warc.gz", site)) and counts["not_visited"] > 0
    assert waits[1:] == [9] * (len(waits) - 1)


@pytest.mark.parametrize("robots", ["User-agent: *\nDisallow: /", "User-agent: megalm\nDisallow: /index"])
def test_a_site_that_wants_no_robots_is_left_alone(site, tmp_path, robots):
    (tmp_path / "site/robots.txt").write_text(robots)
    with pytest.raises(UserError, match="robots.txt does not allow"):
        crawl(f"{site.url}/index.html", tmp_path / "out.warc.gz")
    assert asked_for(site) == ["robots.txt"]


def test_a_robots_txt_that_cannot_be_had_forbids_all_and_a_missing_one_nothing(site, tmp_path):
    site.faults = [(503, {})] * 3
    with pytest.raises(UserError, match=r"could not be had \(status 503\), which forbids all"):
        crawl(f"{site.url}/index.html", tmp_path / "out.warc.gz")
    assert asked_for(site) == ["robots.txt"] * 3
    (tmp_path / "site/robots.txt").unlink()
    assert crawl(f"{site.url}/index.html", tmp_path / "out.warc.gz")["pages"] == 6


def test_retry_after_is_waited_for_and_trying_ends(site, tmp_path, waits):
    site.faults = [(404, {}), (503, {"Retry-After": "33"}), (429, {})]
    crawl(f"{site.url}/b.html", tmp_path / "one.warc.gz")
    assert waits == [1.0, 33, 4.0] and pages_of(tmp_path / "one.warc.gz", site) == ["b.html"]
    site.faults = [(404, {}), *[(503, {})] * 9]
    assert crawl(f"{site.url}/b.html", tmp_path / "two.warc.gz")["failed"] == 1
    assert len(site.faults) == 9 - fetch.TRIES


def test_redirects_are_kept_on_the_host(site, tmp_path):
    site.faults = [(404, {}), (302, {"Location": "/b.html"})]
    counts = crawl(f"{site.url}/old", tmp_path / "one.warc.gz")
    assert pages_of(tmp_path / "one.warc.gz", site) == ["b.html"] and counts["redirected"] == 1
    site.faults = [(404, {}), (301, {"Location": "http://elsewhere.example/b.html"})]
    counts = crawl(f"{site.url}/old", tmp_path / "two.warc.gz")
    assert counts == {"pages": 0, "redirected": 1, "off_host": 1, "not_visited": 0}
    site.faults = [(404, {}), (302, {"Location": "/old"})]  # to itself
    assert crawl(f"{site.url}/old", tmp_path / "three.warc.gz")["pages"] == 0


@pytest.mark.parametrize("pages", [1, 2, 3])
@pytest.mark.parametrize("cut", [0, 20])
def test_a_killed_crawl_goes_on_where_it_was(site, tmp_path, monkeypatch, pages, cut):
    output = tmp_path / "out.warc.gz"
    child = os.fork()
    if child == 0:
        store = module._Crawler._store

        def fatal(self, url, answer):
            if self.counts["pages"] == pages:
                os.kill(os.getpid(), signal.SIGKILL)
            store(self, url, answer)

        module._Crawler._store = fatal
        crawl(f"{site.url}/index.html", output)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    partial = tmp_path / "out.warc.gz.partial"
    os.truncate(partial, partial.stat().st_size - cut)
    site.requests.clear()
    crawl(f"{site.url}/index.html", output)
    assert pages_of(output, site) == ["index.html", "a.html", "b.html", "c.html"]
    assert (
        len([name for name in asked_for(site) if name.endswith(("index.html", "a.html", "b.html"))])
        <= 5 - pages
    )


def test_links_are_normalized_and_nests_and_garbage_are_survived():
    page = b'<base href="http://A.example:80/x/"><a href="../y#z">1</a><a href="?q=1">2</a><a href="//b.example:8080">3</a>'
    assert links_in(page, "http://a.example/") == [
        "http://a.example/y",
        "http://a.example/x/?q=1",
        "http://b.example:8080/",
    ]
    for bad in (
        "javascript:x",
        "http://[bad",
        "http://h:99999/",
        "ftp://x/",
        "file:///etc/passwd",
        "http://x y/",
        "http://a..b/",
        "http://x/" + "a" * 3000,
    ):
        assert normalize("http://a.example/", bad) is None
    nested = b"<div>" * 100_000 + b'<a href="/deep">x</a>' + b"<![garbage <a <a href="
    assert links_in(nested, "http://a.example/") == ["http://a.example/deep"]


@pytest.mark.parametrize(
    ("link", "address"),
    [
        ("x#part", "http://a.example/d/x"),
        ("#part", "http://a.example/d/"),
        ("//A.EXAMPLE.:80", "http://a.example/"),
        ("http://me:secret@a.example/x", "http://a.example/x"),
        ("http://[::1]:80/x", "http://[::1]/x"),
        ("http://[::1]:8000/x", "http://[::1]:8000/x"),
        ("http://a.example/x/../y/./z/..", "http://a.example/y/"),
        ("http://a.example/../../y/%2e%2E/z", "http://a.example/z"),
        ("grüße und so", "http://a.example/d/gr%C3%BC%C3%9Fe%20und%20so"),
        ("?q=é&r=100%25", "http://a.example/d/?q=%C3%A9&r=100%25"),
        ("http://bücher.example/", "http://xn--bcher-kva.example/"),
    ],
)
def test_an_address_has_one_spelling(link, address):
    assert normalize("http://a.example/d/", link) == address == normalize("", address)


def test_mistakes_are_refused(site, tmp_path):
    with pytest.raises(UserError, match="is no address of a page"):
        crawl("example.org", tmp_path / "out.warc.gz")
    (tmp_path / "other.warc.gz.partial").write_bytes(MEMBERS[0])
    with pytest.raises(UserError, match="is of a crawl of site; choose another output"):
        crawl(f"{site.url}/index.html", tmp_path / "other.warc.gz")
    assert (tmp_path / "other.warc.gz.partial").read_bytes() == MEMBERS[0]
    (tmp_path / "out.warc.gz").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        crawl(site.url, tmp_path / "out.warc.gz")
