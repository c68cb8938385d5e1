"""Asks one web server for pages: slowly, again where it is busy, and never for long."""

import email.message
import http.client
import time
import urllib.error
import urllib.request
from typing import Any, NamedTuple

from protego import Protego

from megalm.corpus.links import normalize
from megalm.corpus.sources.http import retry_after
from megalm.corpus.sources.payload import decode_payload
from megalm.corpus.sources.web import Web
from megalm.errors import UserError

TRIES = 3
MOST_UNANSWERED = 10
"""After so many addresses in a row without an answer the server is left alone."""
LARGEST_PAGE = 16 << 20
LARGEST_ROBOTS = 512_000
"""Bytes of robots.txt that are read; RFC 9309 asks for 500 KiB at least."""
TIMEOUT_SECONDS = 30.0
ANSWER_SECONDS = 120.0
_ROBOTS_REDIRECTS = 5  # at least, by RFC 9309
_REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (429, 500, 502, 503, 504)


class Answer(NamedTuple):
    """What a server said: status 0 where it said nothing, or did not end."""

    status: int
    headers: email.message.Message
    body: bytes

    def target(self, url: str) -> str | None:
        """Where the server sends on to from `url`; None if nowhere, or to what is no page of the web."""
        location = self.headers.get("Location")
        if self.status not in _REDIRECTS or not location:
            return None
        return normalize(url, location.encode("latin-1", "replace").decode("utf-8", "replace"))


NO_ANSWER = Answer(0, email.message.Message(), b"")


class Fetcher:
    """Asks one address at a time, `delay` seconds after the one before."""

    def __init__(self, agent: str, delay: float):
        self.agent, self.delay = agent, delay
        self._web = Web(_NoRedirect())
        self._asked = False
        self._unanswered = 0

    def ask(self, url: str, limit: int = LARGEST_PAGE, texts_only: bool = True) -> Answer:
        """Get an address, up to one byte more than `limit`, again where the server asks for that.

        Of what is declared as something else than text the body is left out with `texts_only`. Raises UserError when the
        server has answered nothing for long.
        """
        wait: float | None = None
        answer = NO_ANSWER
        for attempt in range(TRIES):
            if self._asked:
                time.sleep(max(self.delay, wait or 0))
            self._asked = True
            answer = self._get(url, limit, texts_only)
            if answer.status and answer.status not in _PASSING:
                self._unanswered = 0
                return answer
            wait = retry_after(answer.headers.get("Retry-After"))
            if wait is None:
                wait = self.delay * 2 ** (attempt + 1)
        self._unanswered += 1
        if self._unanswered == MOST_UNANSWERED:
            raise UserError(
                f"{url}: the server has not answered {MOST_UNANSWERED} addresses in a row (last status: {answer.status}); "
                "give the command again later, and it goes on"
            )
        return answer

    def _get(self, url: str, limit: int, texts_only: bool) -> Answer:
        headers = {"User-Agent": self.agent, "Accept-Encoding": "identity"}
        try:
            with self._web.within(ANSWER_SECONDS), self._web.open(url, headers, TIMEOUT_SECONDS) as response:
                declared = response.headers.get("Content-Type", "text/html").lower()
                if texts_only and not declared.startswith(("text/", "application/xhtml")):
                    return Answer(response.status, response.headers, b"")
                body = response.read(limit + 1)
                if len(body) <= limit and response.length:
                    return NO_ANSWER  # cut short
                return Answer(response.status, response.headers, body)
        except urllib.error.HTTPError as error:
            error.close()
            return Answer(error.code, error.headers, b"")
        except (OSError, http.client.HTTPException, ValueError):
            return NO_ANSWER


def read_robots(fetcher: Fetcher, url: str) -> Protego:
    """The rules in the robots.txt at `url`, by RFC 9309: none where there is none, or behind too many redirects.

    Raises UserError where it cannot be had for the server's fault, which forbids all.
    """
    for _ in range(_ROBOTS_REDIRECTS + 1):
        answer = fetcher.ask(url, LARGEST_ROBOTS, texts_only=False)
        target = answer.target(url)
        if target is None:
            break
        url = target
    rules: bytes | None = b""
    if 200 <= answer.status < 300:
        rules = decode_payload(answer.body, "", answer.headers.get("Content-Encoding", ""), LARGEST_PAGE)
    elif not 300 <= answer.status < 500 or answer.status == 429:
        rules = None
    if rules is None:
        raise UserError(
            f"{url}: the site's robots.txt could not be had (status {answer.status}), which forbids all of it; "
            "try again later"
        )
    if len(rules) > LARGEST_ROBOTS:
        rules = rules[: rules.rfind(b"\n", 0, LARGEST_ROBOTS) + 1]
    return Protego.parse(rules.decode("utf-8-sig", "replace"))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Leaves redirects to the crawler, which must not leave the host."""

    def redirect_request(self, *arguments: Any) -> None:
        return None
