"""Crawls the pages of one site into a WARC file: slowly, as its robots.txt says, and on after a kill."""

import fcntl
import io
import os
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import megalm
from megalm import atomic
from megalm.corpus.fetch import LARGEST_PAGE, Answer, Fetcher, read_robots
from megalm.corpus.links import host_of, links_in, normalize
from megalm.corpus.sources.base import InputFile
from megalm.corpus.sources.payload import decode_payload, is_html, split_http
from megalm.corpus.sources.warc import read_records
from megalm.errors import UserError

AGENT = f"megalm/{megalm.__version__}"
MAX_DEPTH = 20
REQUESTS_A_PAGE = 10
"""A crawl ends after so many times `max_pages` addresses, however few of them were pages."""
MOST_LINKS = 10_000
"""Of a page."""


def crawl(
    url: str,
    output: str | Path,
    max_pages: int = 100,
    delay: float = 1.0,
    agent: str = AGENT,
    max_depth: int = MAX_DEPTH,
) -> dict[str, int]:
    """Write the HTML pages that `url` leads to, breadth first and on its host alone, to the WARC file `output`.

    Rules and Crawl-delay of robots.txt are kept (RFC 9309: a robots.txt that cannot be had for the server's fault
    forbids all), `delay` seconds pass between requests, Retry-After is waited for (two minutes at most), links marked
    nofollow are not followed, nor more than `max_depth` links and redirects in a row. A crawl that was killed goes on
    from what lies in OUTPUT.partial.

    Returns counts: pages, and what was left out for which reason. Raises UserError for an address that is none, a
    site that allows nothing and a server that does not answer any more.
    """
    start = normalize(url, "")
    if start is None:
        raise UserError(f"{url!r} is no address of a page; write it in full, e.g. https://example.org/docs/")
    output = Path(output)
    if output.exists():
        raise UserError(f"{output} exists; choose another file, or remove it")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.name}.partial")
    with atomic.name_full_disk(output.parent), open(partial, "a+b") as file:
        _lock(file, partial)
        crawler = _Crawler(start, file, max_pages, delay, agent, max_depth)
        crawler.go_on(partial)
        crawler.run()
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, output)
    atomic.sync_directory(output.parent)
    return dict(sorted(crawler.counts.items()))


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UserError(f"another crawl is writing {path}; wait for it or choose another file") from None


class _Crawler:
    def __init__(self, start: str, file: IO[bytes], max_pages: int, delay: float, agent: str, max_depth: int):
        self.start, self.file, self.max_pages, self.agent = start, file, max_pages, agent
        self.max_depth = max_depth
        self.counts: Counter[str] = Counter(pages=0)
        self.fetcher = Fetcher(agent, delay)
        robots = normalize(start, "/robots.txt")
        assert robots is not None
        self.robots = read_robots(self.fetcher, robots)
        self.fetcher.delay = max(delay, self.robots.crawl_delay(agent) or 0)
        if not self.robots.can_fetch(start, agent):
            raise UserError(f"{start}: the site's robots.txt does not allow {agent} to read it")
        self.queue = deque([start])
        self.depth = {start: 0}  # links and redirects from the start, of all addresses seen

    def go_on(self, partial: Path) -> None:
        """Take what an earlier crawl wrote as read; its last record may be cut, and goes."""
        end, depth = 0, 0
        last: tuple[str, bytes] | None = None
        done = set()
        for position, url, body in _stored(partial):
            if position == 0 and host_of(url) != host_of(self.start):
                raise UserError(
                    f"{partial} is of a crawl of {host_of(url)}; choose another output, or remove it"
                )
            if last is not None:
                self.counts["pages"] += 1
                done.add(last[0])
                depth = self.depth.setdefault(last[0], depth)  # behind a redirect: as the page before
                self._enqueue(links_in(last[1], last[0]), depth + 1)
            end, last = position, (url, body)
        self.file.truncate(end)
        self.queue = deque(url for url in self.queue if url not in done)

    def run(self) -> None:
        """Ask for page after page until none is left or there are enough."""
        left = REQUESTS_A_PAGE * self.max_pages
        while self.queue and left and self.counts["pages"] < self.max_pages:
            left -= self._visit(self.queue.popleft())
        self.counts["not_visited"] += len(self.queue)

    def _visit(self, url: str) -> bool:
        """Read a page and find its links, if it is allowed; whether it was asked for."""
        if not self.robots.can_fetch(url, self.agent):
            self.counts["forbidden_by_robots"] += 1
            return False
        answer = self.fetcher.ask(url)
        links: list[str] = []
        if 300 <= answer.status < 400:
            self.counts["redirected"] += 1
            target = answer.target(url)
            links = [target] if target else []
        elif answer.status != 200:
            self.counts["failed"] += 1
        elif len(answer.body) > LARGEST_PAGE:
            self.counts["too_large"] += 1
        else:
            page = _decoded(answer.body, answer.headers.get("Content-Encoding", ""))
            if is_html("", answer.headers.get("Content-Type", ""), page):
                self._store(url, answer)
                self.counts["pages"] += 1
                links = links_in(page, url)
            else:
                self.counts["not_html"] += 1
        self._enqueue(links, self.depth[url] + 1)
        return True

    def _enqueue(self, links: list[str], depth: int) -> None:
        for link in links[:MOST_LINKS]:
            if link in self.depth:
                continue
            self.depth[link] = depth
            if host_of(link) != host_of(self.start):
                self.counts["off_host"] += 1
            elif depth > self.max_depth:
                self.counts["too_deep"] += 1
            else:
                self.queue.append(link)

    def _store(self, url: str, answer: Answer) -> None:
        from warcio.statusandheaders import StatusAndHeaders
        from warcio.warcwriter import WARCWriter

        # The body is stored as it was decoded from chunks.
        kept = [
            (name, value) for name, value in answer.headers.items() if name.lower() != "transfer-encoding"
        ]
        writer = WARCWriter(self.file, gzip=True)
        headers = StatusAndHeaders("200 OK", kept, protocol="HTTP/1.1")
        writer.write_record(
            writer.create_warc_record(url, "response", io.BytesIO(answer.body), http_headers=headers)
        )
        self.file.flush()


def _stored(partial: Path) -> Iterator[tuple[int, str, bytes]]:
    """Position, address and decoded body of the pages in a WARC file, up to where it is damaged."""
    file = InputFile(str(partial), partial.name, 0, 0)
    for record, block in read_records(file, "pages", 2 * LARGEST_PAGE, Counter()):
        _, headers, body = split_http(block)
        decoded = _decoded(body, headers.get("content-encoding", ""))
        yield record.stream_pos, record.headers["WARC-Target-URI"], decoded


def _decoded(body: bytes, encodings: str) -> bytes:
    return decode_payload(body, "", encodings, LARGEST_PAGE) or b""
