"""Requests to web servers that end: each is broken off when it takes too long as a whole."""

import contextlib
import http.client
import socket
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any


class Web:
    """Opens addresses; `redirects` says where to a server may send on.

    The limit of a socket is for each piece of an answer: a server that sends a byte now and then never meets it. What is
    done in the block `within` has a limit as a whole. For one thread, and one answer at a time.
    """

    def __init__(self, redirects: urllib.request.HTTPRedirectHandler):
        self._opener = urllib.request.build_opener(redirects, _Http(self), _Https(self))
        self._socket: socket.socket | None = None

    def open(self, url: str, headers: dict[str, str], timeout: float) -> Any:
        """The server's answer, to be read and closed; raises what `urllib.request.urlopen` does."""
        return self._opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Run the block; raise TimeoutError if it is not through after so long."""
        late = threading.Event()

        def end() -> None:
            late.set()
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            if late.is_set():  # to the block it looked as if the answer had ended
                raise TimeoutError(f"no end after {seconds:g} s")

    def connect(self, *arguments: Any, **options: Any) -> socket.socket:
        """A socket whose connection can be broken off, also while it is being encrypted."""
        new = socket.create_connection(*arguments, **options)
        if self._socket is not None:
            self._socket.close()
        self._socket = new.dup()
        return new

    def close(self) -> None:
        """Give the last connection up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _Http(urllib.request.HTTPHandler):
    def __init__(self, web: Web):
        super().__init__()
        self._web = web

    def http_open(self, request: Any) -> Any:
        return self.do_open(self._connection, request)  # type: ignore[arg-type]

    def _connection(self, host: str, **options: Any) -> http.client.HTTPConnection:
        return _watched(http.client.HTTPConnection(host, **options), self._web)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, web: Web):
        super().__init__()
        self._web = web

    def https_open(self, request: Any) -> Any:
        return self.do_open(self._connection, request)  # type: ignore[arg-type]

    def _connection(self, host: str, **options: Any) -> http.client.HTTPConnection:
        return _watched(http.client.HTTPSConnection(host, **options), self._web)


def _watched(connection: http.client.HTTPConnection, web: Web) -> http.client.HTTPConnection:
    connection._create_connection = web.connect  # type: ignore[attr-defined]
    return connection
