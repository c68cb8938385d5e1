"""Files of web servers, read from any place in them; what breaks off is taken up again where it broke."""

import email.utils
import http.client
import io
import time
import urllib.error
import urllib.request
from typing import Any

import megalm
from megalm.errors import UserError

TRIES = 8
"""How often in a row a request may fail without a byte gained."""
WAIT_SECONDS = 1.0
"""Before the second try; twice as long before each further one, unless the server says how long."""
LONGEST_WAIT_SECONDS = 120.0
TIMEOUT_SECONDS = 60.0
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that may be better next time


def is_url(path: str) -> bool:
    """Whether `path` is an address of the web."""
    return path.startswith(("http://", "https://"))


class HttpFile(io.RawIOBase):
    """A file at an address, with bytes asked for by range.

    Raises UserError for an address that the server refuses, for a file that changes while it is read and after TRIES
    failures in a row: never OSError, which readers take for damage in the file.
    """

    def __init__(self, url: str):
        self.url = url
        self._position = 0
        self._size: int | None = None
        self._version: str | None = None
        self._response: Any = None

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
        """How many bytes the file has, None where the server does not say."""
        if self._response is None and self._size is None:
            self._insist(lambda: None)
        return self._size

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with what comes next; 0 at the end."""
        view = memoryview(buffer).cast("B")
        if self._size is not None and self._position >= self._size:
            return 0
        count = self._insist(lambda: self._receive(view))
        self._position += count
        return count

    def close(self) -> None:
        """Give the connection up."""
        self._drop()
        super().close()

    def _insist(self, work: Any) -> Any:
        """Do `work` on an open response, again after failures that may pass."""
        failures = 0
        while True:
            try:
                if self._response is None:
                    self._open()
                return work()
            except urllib.error.HTTPError as error:
                if error.code not in _PASSING:
                    raise UserError(
                        f"{self.url}: the server answered {error.code} {error.reason}; check the address"
                    ) from None
                reason, wait = f"{error.code} {error.reason}", retry_after(error.headers.get("Retry-After"))
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
        request = urllib.request.Request(self.url, headers=headers)
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        length = response.headers.get("Content-Length")
        begin = self._position if response.status == 206 else 0
        if self._version is not None and version != self._version:
            raise UserError(f"{self.url} has changed while it was read; give the command again")
        self._version, self._response = version, response
        if length is not None:
            self._size = begin + int(length)
        for skipped in range(begin, self._position, 1 << 20):  # a server without ranges sends all again
            wanted = min(1 << 20, self._position - skipped)
            if len(response.read(wanted)) < wanted:
                raise http.client.IncompleteRead(b"")

    def _receive(self, view: memoryview) -> int:
        count = self._response.readinto(view)
        if count == 0 and len(view) and self._size is not None and self._position < self._size:
            raise http.client.IncompleteRead(b"", self._size - self._position)
        return count

    def _drop(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None


def retry_after(value: str | None) -> float | None:
    """Seconds to wait by a Retry-After header, which holds a number or a date."""
    if not value:
        return None
    if value.strip().isdigit():
        return min(float(value), LONGEST_WAIT_SECONDS)
    try:
        until = email.utils.parsedate_to_datetime(value).timestamp()
    except ValueError:
        return None
    return min(max(0.0, until - time.time()), LONGEST_WAIT_SECONDS)
