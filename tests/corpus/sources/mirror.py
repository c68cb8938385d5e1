"""A web server on loopback that serves a directory, and fails in the ways that real ones do."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


class Mirror(ThreadingHTTPServer):
    """Serves `folder`.

    The next answers are taken from `faults`: a status with headers. What is under a path in `answers`, or under "*",
    answers in the place of files.
    """

    def __init__(self, folder: Path, host: str = "127.0.0.1"):
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, 0), _Handler)
        self.folder = folder
        self.faults: list[tuple[int, dict[str, str]]] = []
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.break_after: int | None = None  # bytes of each answer
        self.slice: int | None = None  # bytes of each range, whatever was asked for
        self.ranges = True
        self.etag = '"1"'
        self.requests: list[tuple[str, str | None]] = []
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        """Where it listens."""
        host = self.server_address[0]
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.requests.append((self.path, asked))
        self.close_connection = True
        answer = server.answers.get(self.path) or server.answers.get("*")
        if server.faults:
            status, headers = server.faults.pop(0)
            reply(status, **headers)(self)
        elif answer:
            with contextlib.suppress(ConnectionError):
                answer(self)
        else:
            self.send_file(server.folder / unquote(self.path).lstrip("/"), asked)

    def send_file(self, path: Path, asked: str | None):
        server = self.server
        if not path.is_file():
            return self.send_error(404)
        data = path.read_bytes()
        begin = int(asked.removeprefix("bytes=").partition("-")[0]) if asked and server.ranges else 0
        if begin and begin >= len(data):
            return reply(416, **{"Content-Range": f"bytes */{len(data)}"})(self)
        end = min(len(data), begin + server.slice) if begin and server.slice else len(data)
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        self.send_header("Content-Length", str(end - begin))
        self.send_header("ETag", server.etag)
        self.end_headers()
        stop = end if server.break_after is None else min(end, begin + server.break_after)
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data[begin:stop])

    def log_message(self, *arguments):
        pass


def reply(status: int = 200, body: bytes = b"", **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """An answer; with no length where that is given as empty."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value:
                handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def endless(handler: BaseHTTPRequestHandler) -> None:
    """A page without an end."""
    handler.send_response(200)
    handler.send_header("Content-Type", "text/html")
    handler.end_headers()
    while True:
        handler.wfile.write(b"<p>more and more</p>" * 5000)


def dripping(handler: BaseHTTPRequestHandler) -> None:
    """An answer that comes byte by byte, too slow to end and too fast for the limit of a socket."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    while not handler.server.ended.wait(0.01):
        handler.wfile.write(b"x")


def dripping_headers(handler: BaseHTTPRequestHandler) -> None:
    """The same, before there is any answer."""
    while not handler.server.ended.wait(0.01):
        handler.wfile.write(b"H")


@contextlib.contextmanager
def serving(folder: Path, host: str = "127.0.0.1") -> Iterator[Mirror]:
    """Yield a mirror that runs while the block does."""
    with Mirror(folder, host) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()
            thread.join()
