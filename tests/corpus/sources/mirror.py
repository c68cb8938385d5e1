"""A web server on loopback that serves a directory, and fails in the ways that real ones do."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Mirror(ThreadingHTTPServer):
    """Serves `folder`. The next answers are taken from `faults`: a status, or how many bytes come before the end."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.faults: list[int | tuple[int, dict[str, str]]] = []
        self.break_after: int | None = None  # bytes of each answer
        self.ranges = True
        self.etag = '"1"'
        self.requests: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.requests.append((self.path, asked))
        if server.faults:
            status, headers = server.faults.pop(0)
            self.send_response(status)
            for name, value in {"Content-Length": "0", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            return
        path = server.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        begin = int(asked.removeprefix("bytes=").partition("-")[0]) if asked and server.ranges else 0
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(data) - begin))
        self.send_header("ETag", server.etag)
        self.end_headers()
        stop = None if server.break_after is None else begin + server.break_after
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data[begin:stop])
        self.close_connection = True

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Mirror]:
    """Yield a mirror that runs while the block does."""
    with Mirror(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
