"""Files of web servers, read from any place in them; what breaks off is taken up again where it broke."""

import email.utils
import http.client
import io
import re
import string
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote, urlsplit

import megalm
from megalm.corpus.links import host_of, normalize
from megalm.corpus.sources.web import Web
from megalm.errors import UserError

TRIES = 8
"""How often in a row a request may fail without a byte gained."""
WAIT_SECONDS = 1.0
"""Before the second try; twice as long before each further one, unless the server says how long."""
LONGEST_WAIT_SECONDS = 120.0
TIMEOUT_SECONDS = 60.0
BLOCK_SECONDS = 120.0
"""In which a megabyte must come, or the beginning of an answer."""
_BLOCK = 1 << 20
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that may be better next time
_RANGE = re.compile(r"bytes (?:(\d{1,18})-\d{1,18}|\*)/(\d{1,18}|\*)")


def is_url(path: str) -> bool:
    """Whether `path` is an address of the web."""
    return path.startswith(("http://", "https://"))


def file_name(path: str) -> str:
    """The path of a file, or that in an address, by whose ending one knows what it is."""
    return urlsplit(path).path if is_url(path) else path


class HttpFile(io.RawIOBase):
    """A file at an address, with bytes asked for by range.

    Raises UserError for an address that the server refuses, for a server that sends on to another host, for a file that
    changes while it is read and after TRIES failures in a row: never OSError, which readers take for damage in the file.
    """

    def __init__(self, url: str):
        _check_address(url)
        self.url = url
        self._position = 0
        self._size: int | None = None
        self._version: str | None = None
        self._encoding: str | None = None  # not yet asked
        self._response: Any = None
        self._web = Web(_SameHost())

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Where the next byte comes from."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to another place; the request for it is made by the next read."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position}.get(whence)
        position = (self.size() or 0) + offset if base is None else base + offset
        if position != self._position:
            self._drop()
            self._position = position
        return position

    def size(self) -> int | None:
        """How many bytes the server sends for all of the file, None where it does not say."""
        if self._response is None and self._size is None:
            self._insist(lambda: 0)
        return self._size

    def encoding(self) -> str:
        """The compression (gzip, br, ...) that the server put around a file that is not named for one, else nothing."""
        if self._encoding is None:
            self._insist(lambda: 0)
        own = file_name(self.url).endswith((".gz", ".zst"))
        return "" if own else (self._encoding or "").removeprefix("x-")

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with what comes next; 0 at the end."""
        view = memoryview(buffer).cast("B")[:_BLOCK]
        if self._size is not None and self._position >= self._size:
            return 0
        count = self._insist(lambda: self._receive(view))
        self._position += count
        return count

    def close(self) -> None:
        """Give the connection up."""
        self._drop()
        self._web.close()
        super().close()

    def _insist(self, work: Any) -> int:
        """Do `work` on an open response, again after failures that may pass."""
        failures = 0
        while True:
            try:
                if self._response is None:
                    self._open()
                return work()
            except urllib.error.HTTPError as error:
                error.close()
                if (
                    error.code == 416 and self._size is None
                ):  # behind the end of a file whose size was not told
                    self._size = _total(error.headers.get("Content-Range"))
                    return 0
                reason = " ".join(f"{error.code} {error.reason}".split())
                if error.code not in _PASSING:
                    raise UserError(f"{self.url}: the server answered {reason}; check the address") from None
                wait = retry_after(error.headers.get("Retry-After"))
            except (http.client.InvalidURL, UnicodeError) as error:
                raise UserError(
                    f"{self.url} is no address that can be asked for ({error}); check it"
                ) from None
            except (OSError, http.client.HTTPException) as error:
                reason, wait = str(error) or type(error).__name__, None
            self._drop()
            failures += 1
            if failures == TRIES:
                raise UserError(
                    f"{self.url} could not be read from byte {self._position} on in {TRIES} tries ({reason}); "
                    "give the command again later"
                )
            time.sleep(WAIT_SECONDS * 2 ** (failures - 1) if wait is None else wait)

    def _open(self) -> None:
        headers = {"User-Agent": f"megalm/{megalm.__version__}", "Accept-Encoding": "identity"}
        if self._position:
            headers["Range"] = f"bytes={self._position}-"
        with self._web.within(BLOCK_SECONDS):
            response = self._web.open(quote(self.url, string.punctuation), headers, TIMEOUT_SECONDS)
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if self._version is not None and version != self._version:
            response.close()
            raise UserError(f"{self.url} has changed while it was read; give the command again")
        self._version, self._response = version, response
        self._encoding = response.headers.get("Content-Encoding", "").strip().lower().replace("identity", "")
        begin, size = 0, response.length
        if response.status == 206:  # perhaps of another range, or of a part of it
            found = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
            if found is None or found[1] is None or int(found[1]) > self._position:
                raise http.client.HTTPException("the server sent another range than it was asked for")
            begin, size = int(found[1]), _total(found[0])
        if size is not None:
            self._size = size
        for skipped in range(begin, self._position, _BLOCK):  # a server without ranges sends all again
            wanted = min(_BLOCK, self._position - skipped)
            with self._web.within(BLOCK_SECONDS):
                if len(response.read(wanted)) < wanted:
                    raise http.client.IncompleteRead(b"")

    def _receive(self, view: memoryview) -> int:
        with self._web.within(BLOCK_SECONDS):
            count = self._response.readinto(view)
        if count == 0 and len(view) and self._size is not None and self._position < self._size:
            raise http.client.IncompleteRead(b"", self._size - self._position)
        return count

    def _drop(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows redirects that stay on the host."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        target, origin = normalize(newurl, ""), normalize(req.full_url, "")
        if target is None or origin is None or host_of(target) != host_of(origin):
            raise UserError(
                f"{req.full_url}: the server sends on to another host, {newurl}; give that address if you want it"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        wrong = "" if parts.hostname and parts.port != 0 else "no host"
    except ValueError as error:
        raise UserError(f"{url} is no address that can be asked for ({error}); check it") from None
    if "@" in parts.netloc:
        url, wrong = f"...@{parts.netloc.rpartition('@')[2]}", "with a name or password"
    if wrong:
        raise UserError(f"{url} is no address that can be asked for ({wrong}); check it")


def retry_after(value: str | None) -> float | None:
    """Seconds to wait by a Retry-After header, which holds a number or a date."""
    if not value:
        return None
    if re.fullmatch(r"\s*[0-9]+\s*", value):
        return min(float(value), LONGEST_WAIT_SECONDS)
    try:
        until = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, until - time.time()), LONGEST_WAIT_SECONDS)


def _total(content_range: str | None) -> int | None:
    """The size of the file by a Content-Range header."""
    found = _RANGE.fullmatch((content_range or "").strip())
    return None if found is None or found[2] == "*" else int(found[2])
