"""Crawls the pages of one site into a WARC file: slowly, as its robots.txt says, and on after a kill."""

import email.message
import http.client
import io
import os
import time
import urllib.error
import urllib.request
from collections import Counter, deque
from pathlib import Path
from typing import IO, Any, NamedTuple

from protego import Protego

import megalm
from megalm import atomic
from megalm.corpus.links import host_of, links_in, normalize
from megalm.corpus.sources.base import InputFile
from megalm.corpus.sources.http import retry_after
from megalm.corpus.sources.payload import decode_payload, is_html, split_http
from megalm.corpus.sources.warc import read_records
from megalm.errors import UserError

AGENT = f"megalm/{megalm.__version__}"
TIMEOUT_SECONDS = 30.0
TRIES = 3
LARGEST_PAGE = 16 << 20
_REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (429, 500, 502, 503, 504)


class Answer(NamedTuple):
    """What a server said: status 0 where it said nothing."""

    status: int
    headers: email.message.Message
    body: bytes


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Leaves redirects to the crawler, which must not leave the host."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


def crawl(
    url: str, output: str | Path, max_pages: int = 100, delay: float = 1.0, agent: str = AGENT
) -> dict[str, int]:
    """Write the HTML pages that `url` leads to, breadth first and on its host alone, to the WARC file `output`.

    Rules and Crawl-delay of robots.txt are kept (RFC 9309: a robots.txt that cannot be had for the server's fault
    forbids all), `delay` seconds pass between requests, Retry-After is waited for, links marked nofollow are not
    followed. A crawl that was killed goes on from what lies in OUTPUT.partial.

    Returns counts: pages, and what was left out for which reason. Raises UserError for an address that is none or a
    site that allows nothing.
    """
    start = normalize(url, "")
    if start is None:
        raise UserError(f"{url!r} is no address of a page; write it in full, e.g. https://example.org/docs/")
    output = Path(output)
    if output.exists():
        raise UserError(f"{output} exists; choose another file, or remove it")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.name}.partial")
    with open(partial, "a+b") as file:
        crawler = _Crawler(start, file, max_pages, delay, agent)
        crawler.go_on(partial)
        crawler.run()
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, output)
    atomic.sync_directory(output.parent)
    return dict(sorted(crawler.counts.items()))


class _Crawler:
    def __init__(self, start: str, file: IO[bytes], max_pages: int, delay: float, agent: str):
        self.start, self.file, self.max_pages, self.agent = start, file, max_pages, agent
        self.counts: Counter[str] = Counter(pages=0)
        self.opener = urllib.request.build_opener(_NoRedirect)
        self.delay = delay
        self.asked = False
        self.robots = self._read_robots()
        self.delay = max(delay, self.robots.crawl_delay(agent) or 0)
        if not self.robots.can_fetch(start, agent):
            raise UserError(f"{start}: the site's robots.txt does not allow {agent} to read it")
        self.queue = deque([start])
        self.known = {start}

    def go_on(self, partial: Path) -> None:
        """Take what an earlier crawl wrote as read; its last record may be cut, and goes."""
        end, visited = 0, []
        for position, url, body in _stored(partial):
            end = position
            visited.append((url, body))
        if visited and host_of(visited[0][0]) != host_of(self.start):
            raise UserError(
                f"{partial} is of a crawl of {host_of(visited[0][0])}; choose another output, or remove it"
            )
        self.file.truncate(end)
        for url, body in visited[:-1]:
            self.counts["pages"] += 1
            self.known.add(url)
            self._enqueue(links_in(body, url))
        done = {url for url, _ in visited[:-1]}
        self.queue = deque(url for url in self.queue if url not in done)

    def run(self) -> None:
        """Ask for page after page until none is left or there are enough."""
        while self.queue and self.counts["pages"] < self.max_pages:
            self._visit(self.queue.popleft())
        self.counts["not_visited"] = len(self.queue)

    def _visit(self, url: str) -> None:
        if not self.robots.can_fetch(url, self.agent):
            self.counts["forbidden_by_robots"] += 1
            return
        answer = self._ask(url)
        if answer.status in _REDIRECTS:
            target = normalize(url, answer.headers.get("Location", ""))
            self.counts["redirected"] += 1
            self._enqueue([target] if target else [])
        elif answer.status != 200:
            self.counts["failed"] += 1
        elif not is_html("", answer.headers.get("Content-Type", ""), answer.body):
            self.counts["not_html"] += 1
        elif len(answer.body) > LARGEST_PAGE:
            self.counts["too_large"] += 1
        else:
            self._store(url, answer)
            self.counts["pages"] += 1
            self._enqueue(links_in(_decoded(answer.body, answer.headers.get("Content-Encoding", "")), url))

    def _enqueue(self, links: list[str]) -> None:
        for link in links:
            if link in self.known:
                continue
            self.known.add(link)
            if host_of(link) == host_of(self.start):
                self.queue.append(link)
            else:
                self.counts["off_host"] += 1

    def _ask(self, url: str) -> Answer:
        """Get an address politely, again where the server asks for that."""
        wait: float | None = None
        answer = Answer(0, email.message.Message(), b"")
        for attempt in range(TRIES):
            if self.asked:
                time.sleep(max(self.delay, wait or 0))
            self.asked = True
            answer = self._get(url)
            if answer.status and answer.status not in _PASSING:
                break
            wait = retry_after(answer.headers.get("Retry-After"))
            if wait is None:
                wait = self.delay * 2 ** (attempt + 1)
        return answer

    def _get(self, url: str) -> Answer:
        request = urllib.request.Request(
            url, headers={"User-Agent": self.agent, "Accept-Encoding": "identity"}
        )
        try:
            with self.opener.open(request, timeout=TIMEOUT_SECONDS) as response:
                declared = response.headers.get("Content-Type", "text/html").lower()
                wanted = declared.startswith(("text/", "application/xhtml"))
                body = response.read(LARGEST_PAGE + 1) if wanted else b""
                return Answer(response.status, response.headers, body)
        except urllib.error.HTTPError as error:
            error.close()
            return Answer(error.code, error.headers, b"")
        except (OSError, http.client.HTTPException, ValueError):
            return Answer(0, email.message.Message(), b"")

    def _read_robots(self) -> Protego:
        url = normalize(self.start, "/robots.txt")
        for _ in range(5):
            assert url is not None
            answer = self._ask(url)
            target = (
                normalize(url, answer.headers.get("Location", "")) if answer.status in _REDIRECTS else None
            )
            if target is None:
                break
            url = target
        if answer.status == 200:
            return Protego.parse(answer.body.decode("utf-8", "replace"))
        if 300 <= answer.status < 500 and answer.status != 429:
            return Protego.parse("")
        raise UserError(
            f"{url}: the site's robots.txt could not be had (status {answer.status}), which forbids all of it; "
            "try again later"
        )

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


def _stored(partial: Path) -> list[tuple[int, str, bytes]]:
    """Position, address and decoded body of the pages in a WARC file, up to where it is damaged."""
    file = InputFile(str(partial), partial.name, 0, 0)
    pages = []
    for record, block in read_records(file, "pages", 2 * LARGEST_PAGE, Counter()):
        _, headers, body = split_http(block)
        decoded = _decoded(body, headers.get("content-encoding", ""))
        pages.append((record.stream_pos, record.headers["WARC-Target-URI"], decoded))
    return pages


def _decoded(body: bytes, encodings: str) -> bytes:
    return decode_payload(body, "", encodings, LARGEST_PAGE) or b""
