"""The crawler on sites that are broken, slow, endless or hostile: it obeys, stays on the host and ends."""

import email.utils
import gzip
import socket
import time

import pytest

from megalm.corpus import fetch
from megalm.corpus.crawl import MOST_LINKS, REQUESTS_A_PAGE, crawl
from megalm.corpus.pages import raw_page
from megalm.errors import UserError
from tests.corpus.sources.mirror import dripping, dripping_headers, endless, reply, serving
from tests.corpus.sources.reading import read
from tests.corpus.web_site import asked_for, pages_of


def page(*links: str) -> bytes:
    return f"<html><body>{''.join(f'<a href={link!r}>x</a>' for link in links)}</body></html>".encode()


def html(*links: str, **headers: str):
    return reply(200, page(*links), **{"Content-Type": "text/html", **headers})


def crawled(site, tmp_path, start="index.html", **options):
    """Counts, and the pages in the file."""
    output = tmp_path / "out.warc.gz"
    counts = crawl(f"{site.url}/{start}", output, **options)
    return counts, pages_of(output, site)


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429, 599])
def test_a_robots_txt_that_fails_forbids_all(site, tmp_path, status):
    site.answers["/robots.txt"] = reply(status)
    with pytest.raises(
        UserError, match=rf"could not be had \(status {status}\), which forbids all of it; try"
    ):
        crawled(site, tmp_path)
    assert set(asked_for(site)) == {"robots.txt"}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_robots_txt_that_there_is_not_forbids_nothing(site, tmp_path, status):
    site.answers["/robots.txt"] = reply(status, b"User-agent: *\nDisallow: /")
    assert "secret/x.html" in crawled(site, tmp_path)[1]


RULES = b"User-agent: *\nDisallow: /secret/\n"


@pytest.mark.parametrize(
    "answer",
    [
        reply(200, RULES, **{"Content-Type": "application/octet-stream"}),
        reply(200, RULES, **{"Content-Length": ""}),
        reply(203, RULES),
        reply(200, b"\xef\xbb\xbf" + RULES),
        reply(200, RULES.replace(b"\n", b"\r\n")),
        reply(200, b"\xff\xfe invalid \x80\n" + RULES),
        reply(200, gzip.compress(RULES), **{"Content-Encoding": "gzip"}),
        reply(200, RULES + b"# many rules\nDisallow: /x/*/y$\n" * 500_000),
    ],
    ids=["no text", "no length", "203", "mark", "CRLF", "invalid", "gzip", "16 MB"],
)
def test_a_robots_txt_is_obeyed_in_whatever_form_it_comes(site, tmp_path, answer):
    site.answers["/robots.txt"] = answer
    counts, pages = crawled(site, tmp_path)
    assert counts["forbidden_by_robots"] == 1 and len(pages) >= 4 and "secret/x.html" not in asked_for(site)


@pytest.mark.parametrize(
    "answer",
    [
        reply(200, RULES, **{"Content-Length": "1000"}),
        reply(200, gzip.compress(b"#" * 30_000_000), **{"Content-Encoding": "gzip"}),
        dripping,
        dripping_headers,
    ],
    ids=["cut short", "bomb", "slow", "slow headers"],
)
def test_a_robots_txt_that_does_not_end_forbids_all(site, tmp_path, answer, monkeypatch):
    monkeypatch.setattr(fetch, "ANSWER_SECONDS", 0.1)
    site.answers["/robots.txt"] = answer
    with pytest.raises(UserError, match="could not be had"):
        crawled(site, tmp_path)


def test_redirects_of_robots_txt_are_followed_five_times(site, tmp_path):
    for hop in range(1, 5):
        site.answers[f"/{hop}"] = reply(302, Location=f"/{hop + 1}")
    site.answers["/robots.txt"] = reply(301, Location="/1")
    site.answers["/5"] = reply(200, RULES)
    assert crawled(site, tmp_path)[0]["forbidden_by_robots"] == 1
    site.answers["/5"] = reply(302, Location="/5")  # to itself, for ever
    site.requests.clear()
    assert crawl(f"{site.url}/index.html", tmp_path / "two.warc.gz").get("forbidden_by_robots") is None
    assert asked_for(site).count("5") == 1


def test_retry_after_as_a_date_is_waited_for(site, tmp_path, waits):
    date = email.utils.formatdate(time.time() + 50, usegmt=True)
    site.faults = [(404, {}), (429, {"Retry-After": date}), (503, {"Retry-After": "86400"})]
    assert crawled(site, tmp_path, "b.html")[1] == ["b.html"]
    assert 40 < waits[1] <= 50 and waits[2] == 120  # two minutes at most


def test_a_server_that_answers_no_more_is_left_alone_and_the_crawl_goes_on_later(site, tmp_path):
    site.answers["/index.html"] = html(*(f"/{n}" for n in range(50)))
    for n in range(50):
        site.answers[f"/{n}"] = html() if n < 5 else reply(503)
    with pytest.raises(
        UserError, match=r"/14: the server has not answered 10 addresses in a row \(last status: 503"
    ):
        crawled(site, tmp_path)
    assert not (tmp_path / "out.warc.gz").exists()
    for n in range(50):
        site.answers[f"/{n}"] = html()
    counts, pages = crawled(site, tmp_path)
    assert pages == ["index.html", *map(str, range(50))] and counts["pages"] == 51


@pytest.mark.parametrize("change", ["port", "name", "file", "ftp", "script"])
def test_a_redirect_leads_to_no_other_host_or_scheme(site, tmp_path, change):
    with serving(tmp_path / "site") as other:
        target = {
            "port": f"{other.url}/b.html",
            "name": f"http://localhost:{site.server_port}/b.html",
            "file": "file:///etc/passwd",
            "ftp": f"ftp://127.0.0.1:{site.server_port}/b.html",
            "script": "javascript:alert(1)",
        }[change]
        site.answers["/old"] = reply(302, Location=target)
        counts, pages = crawled(site, tmp_path, "old")
        assert pages == [] and counts["redirected"] == 1 and other.requests == []
    assert asked_for(site) == ["robots.txt", "old"]


def test_redirects_in_a_circle_and_without_end_are_left(site, tmp_path):
    site.answers["/a"], site.answers["/b"] = reply(302, Location="/b"), reply(307, Location="/a")
    assert crawled(site, tmp_path, "a")[0] == {"pages": 0, "redirected": 2, "not_visited": 0}
    site.answers["*"] = lambda handler: reply(302, Location=f"{handler.path}x")(handler)
    site.answers["/robots.txt"] = reply(404)
    counts = crawl(f"{site.url}/x", tmp_path / "two.warc.gz", max_depth=7)
    assert counts == {"pages": 0, "redirected": 8, "too_deep": 1, "not_visited": 0}


def test_an_endless_calendar_is_left_at_the_page_limit_or_at_the_depth(site, tmp_path):
    def calendar(handler):
        html(f"{handler.path}/next", f"{handler.path}?day=1", "?month=2#today")(handler)

    site.answers["*"], site.answers["/robots.txt"] = calendar, reply(404)
    counts, pages = crawled(site, tmp_path, "cal", max_pages=12)
    assert counts["pages"] == len(pages) == len(set(pages)) == 12 and counts["not_visited"] > 0
    site.answers["*"] = lambda handler: html(f"{handler.path}/next")(handler)
    site.requests.clear()
    counts = crawl(f"{site.url}/cal", tmp_path / "two.warc.gz", max_pages=1000, max_depth=5)
    assert counts == {"pages": 6, "too_deep": 1, "not_visited": 0}
    assert asked_for(site)[-1] == "cal" + "/next" * 5


def test_a_page_of_links_to_nothing_ends_the_crawl_soon(site, tmp_path):
    site.answers["/index.html"] = html(*(f"/none/{n}" for n in range(MOST_LINKS + 5)))
    counts, pages = crawled(site, tmp_path, max_pages=3)
    assert pages == ["index.html"] and len(asked_for(site)) == 1 + 3 * REQUESTS_A_PAGE
    assert counts == {"pages": 1, "failed": 29, "not_visited": MOST_LINKS - 29}


def test_steps_in_a_path_lead_not_around_robots_txt(site, tmp_path):
    ways = ["/x/../secret/x.html", "/x/%2e%2E/secret/x.html", "/./secret/x.html", "secret/x.html#part"]
    site.answers["/index.html"] = html(*ways, *(f"{site.url}{way}" for way in ways[:3]))
    counts, _ = crawled(site, tmp_path)
    assert counts == {"pages": 1, "forbidden_by_robots": 1, "not_visited": 0}


def test_a_user_and_a_fragment_in_a_link_make_no_other_page(site, tmp_path):
    host = site.url.removeprefix("http://")
    site.answers["/index.html"] = html(
        "/b.html", f"http://me:secret@{host}/b.html", "/b.html#x", f"http://{host}./"
    )
    assert crawled(site, tmp_path)[1] == ["index.html", "b.html"]
    assert asked_for(site).count("b.html") == 1


def test_a_site_at_an_ipv6_address_is_crawled(site, tmp_path):
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"no IPv6 here ({error.strerror})")
    with serving(tmp_path / "site", "::1") as other:
        assert crawled(other, tmp_path)[1] == ["index.html", "a.html", "b.html", "c.html"]


@pytest.mark.parametrize("slow", [dripping, dripping_headers])
def test_a_page_that_comes_byte_by_byte_costs_its_time_and_no_more(site, tmp_path, slow, monkeypatch):
    monkeypatch.setattr(fetch, "ANSWER_SECONDS", 0.1)
    site.answers["/a.html"] = slow
    counts, pages = crawled(site, tmp_path)
    assert pages == ["index.html", "b.html"] and counts["failed"] == 2  # and one that is missing


def test_an_endless_page_is_left_at_the_limit(site, tmp_path):
    site.answers["/a.html"] = endless
    counts, pages = crawled(site, tmp_path)
    assert pages == ["index.html", "b.html"] and counts["too_large"] == 1


def test_a_page_shorter_than_its_length_is_asked_for_again(site, tmp_path):
    answers = [html("/c.html"), html("/c.html", **{"Content-Length": "5000"})]
    site.answers["/a.html"] = lambda handler: answers.pop()(handler)
    assert crawled(site, tmp_path)[1] == ["index.html", "a.html", "b.html", "c.html"]


def test_pages_compressed_on_the_way_are_followed_and_stored(site, tmp_path):
    zipped = gzip.compress(page("/c.html"))
    bomb = gzip.compress(b"<html>" + b"a" * 30_000_000)
    site.answers["/a.html"] = reply(200, zipped, **{"Content-Encoding": "gzip", "Content-Type": ""})
    site.answers["/b.html"] = reply(200, bomb, **{"Content-Encoding": "gzip", "Content-Type": "text/html"})
    crawl(f"{site.url}/index.html", tmp_path / "out.warc.gz")
    documents, counters = read("warc", tmp_path / "out.warc.gz")
    assert [d.metadata["url"].rpartition("/")[2] for d in documents] == ["index.html", "a.html", "c.html"]
    assert raw_page(documents[1])[0] == page("/c.html") and counters == {"too_large": 1}
