"""Whatever is sent to the server, it tells what is wrong with it, and goes on answering others."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from itertools import product
from typing import Any

import httpx2 as httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import checks

from tests.serve.servers import Server, until

pytestmark = pytest.mark.timeout(300)
CHAT, TEXTS = "/v1/chat/completions", "/v1/completions"
DEEP = [50, 200, 500, 900, 1100, 5000, 100_000]


@pytest.fixture(autouse=True)
def alive(server: Server) -> Iterator[None]:
    """After each of these tests the server answers as before, and nothing failed in it."""
    before = ask(server)
    yield
    assert server.process.poll() is None
    assert ask(server) == before
    until(lambda: server.metric("megalm_open_texts") == 0)
    assert server.metric("megalm_requests_total", status="500") == 0
    assert "Traceback" not in "".join(server.log)


def ask(server: Server) -> list[Any]:
    with server.client() as client:
        answer = client.post(TEXTS, json={"prompt": "the end", "max_tokens": 4, "seed": 1})
    choices: list[Any] = answer.json()["choices"]
    return choices


def post(server: Server, body: bytes, path: str = TEXTS, kind: str = "application/json") -> httpx.Response:
    with server.client() as client:
        return client.post(path, content=body, headers={"content-type": kind})


def is_told(answer: httpx.Response) -> bool:
    """Whether it is a refusal in OpenAI's form."""
    error = answer.json()["error"]
    return 400 <= answer.status_code < 500 and bool(error["message"]) and len(answer.content) < 2000


def raw(server: Server, data: bytes, seconds: float = 10) -> bytes:
    """What comes back on a bare connection, until it is closed."""
    with connect(server, seconds) as connection:
        connection.sendall(data)
        found = b""
        try:
            while read := connection.recv(65536):
                found += read
        except (TimeoutError, ConnectionResetError):
            pass
        return found


def connect(server: Server, seconds: float = 30) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=seconds)


NO_REQUESTS = [
    b"",
    b"{",
    b"\x00",
    b"\xff\xfe{",
    b'"text"',
    b"null",
    b"[]",
    b"{}",
    b'{"prompt": "a"',
    b'{"prompt": "\x01"}',
    b'{"prompt": "a"} {"prompt": "b"}',
    b"\xef\xbb\xbf{}",
    b'{"a":' * 3000,
]


def test_what_is_no_request_is_refused(server: Server) -> None:
    for path in (CHAT, TEXTS, "/v1/embeddings", "/v1/moderations"):
        for body in NO_REQUESTS:
            assert is_told(post(server, body, path)), (path, body[:50])


def test_deep_nesting_is_refused(server: Server) -> None:
    for depth, (left, right) in product(DEEP, ((b"[", b"]"), (b'{"a":', b"}"))):
        deep = left * depth + b"1" + right * depth
        for body in (deep, b'{"prompt": ' + deep + b"}", b'{"messages": [' + deep + b"]}"):
            assert is_told(post(server, body, CHAT if b"messages" in body else TEXTS))


NO_NUMBERS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "1" * 400,
    "9" * 5000,
    "-1",
    "1.5",
    '"a"',
    "[]",
    "{}",
    "true",
]


def test_numbers_that_are_none_are_refused(server: Server) -> None:
    names = ("n", "max_tokens", "top_k", "seed", "temperature", "presence_penalty")
    for value in NO_NUMBERS:
        for name in names:
            answer = post(server, f'{{"prompt": "a", "max_tokens": 2, "{name}": {value}}}'.encode())
            assert answer.status_code == 200 or is_told(answer), (name, value[:20])
        for ids in (f"[{value}]", f"[[{value}]]"):
            answer = post(server, f'{{"prompt": {ids}, "max_tokens": 1}}'.encode())
            assert answer.status_code == 200 or is_told(answer), ids[:20]


def test_odd_characters_are_read_or_refused(server: Server) -> None:
    for text, status in (
        ("\\u0000 a \\u0000", 200),
        ("\\ud83d\\ude00", 200),
        ("\\ud83d", 400),
        ("a\\udfff", 400),
        ("\\ufeff\\u202e\\u0007", 200),
        ("a" + "\\u0301" * 10, 200),
    ):
        answer = post(server, f'{{"prompt": "{text}", "max_tokens": 1}}'.encode())
        assert answer.status_code == status, (text, answer.text)
        named = post(server, f'{{"prompt": "a", "max_tokens": 1, "user": "{text}"}}'.encode())
        assert named.status_code == status


def test_script_is_data_alone(server: Server) -> None:
    script = "<script>alert(1)</script>"
    with server.client() as client:
        body = {"prompt": script, "echo": True, "max_tokens": 1}
        for answer in (
            client.post(TEXTS, json=body),
            client.post(TEXTS, json={"prompt": "a", "model": script}),
            client.get(f"/v1/models/{script}"),
            client.get(f"/{script}"),
            client.post(CHAT, json={"messages": [{"role": script, "content": "a"}]}),
        ):
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["x-content-type-options"] == "nosniff"


PATHS = [
    "/v1/models/../../../etc/passwd",
    "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "/v1/models/..%5c..%5cetc",
    "/v1/models//etc/passwd",
    "/v1/models/%00",
    "/v1/models/%ff%fe",
    "/v1/models/" + "a" * 30_000,
    "//v1/models",
    "/v1/models/tiny/",
    "/v1/./../serve.yaml",
    "/%2e%2e/%2e%2e/etc/passwd",
]


def test_paths_lead_nowhere_else(server: Server) -> None:
    for path in PATHS:
        found = raw(server, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head, _, body = found.partition(b"\r\n\r\n")
        assert head.split()[1] in (b"404", b"307"), (path[:50], found[:200])
        assert b"root:" not in body and len(body) < 1000


NO_HTTP = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,
    b"GET\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n{}",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: " + b"b" * 200_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 50_000 + b"\r\n",
    b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
]


def test_what_is_no_http_is_refused(server: Server) -> None:
    for data in NO_HTTP:
        found = raw(server, data)
        assert found.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501")), (data[:80], found[:80])


def test_headers_may_hold_anything(server: Server) -> None:
    for key in ("", "Bearer", "Bearer " + "x" * 60_000, "Basic a:b", "\xff\xfe", "Bearer \x01"):
        head = f"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {key}\r\n\r\n"
        assert raw(server, head.encode("latin-1"))[:12] in (b"HTTP/1.1 200", b"HTTP/1.1 400")


def test_large_bodies_are_refused_before_they_are_read(server: Server) -> None:
    ten = json.dumps({"prompt": "a" * 10_000_000}).encode()
    assert post(server, ten).status_code == 413
    under = {"prompt": "a " * 100_000, "max_tokens": 1}
    assert is_told(post(server, json.dumps(under).encode()))
    many = {"prompt": "a", "stop": ["x"] * 100_000}
    assert is_told(post(server, json.dumps(many).encode()))
    wide = {f"key{number}": 1 for number in range(20_000)}
    assert is_told(post(server, json.dumps(wide).encode()))
    turns = {"messages": [{"role": "user", "content": "a"}] * 2_000}
    assert is_told(post(server, json.dumps(turns).encode(), CHAT))


def test_stop_strings_are_no_patterns(server: Server) -> None:
    for stop in ("(a+)+$", ".*", "[", "\\", "(?:" * 300):
        body = {"prompt": "a" * 20, "max_tokens": 8, "stop": stop, "seed": 1}
        assert post(server, json.dumps(body).encode()).status_code == 200


def test_slow_clients_keep_nobody_waiting(server: Server) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
    slow = [connect(server) for _ in range(60)]
    for number, connection in enumerate(slow):
        connection.sendall((b"", head[:5], head)[number % 3])
    begun = time.monotonic()
    ask(server)
    assert time.monotonic() - begun < 10
    for connection in slow:
        assert connection.recv(10) == b""  # closed, after `body_seconds`
        connection.close()


def test_slow_readers_keep_nobody_waiting(server: Server) -> None:
    body = json.dumps({"prompt": "the end", "max_tokens": 60, "n": 8, "stream": True}).encode()
    head = f"POST {TEXTS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    readers = []
    for _ in range(8):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        host, port = server.url.removeprefix("http://").split(":")
        connection.connect((host, int(port)))
        connection.sendall(head.encode() + body)
        readers.append(connection)
    ask(server)
    until(lambda: server.metric("megalm_open_texts") == 0)
    for connection in readers:
        connection.close()


def test_many_at_once_are_all_answered(server: Server) -> None:
    statuses: list[int] = []

    def one(number: int) -> None:
        statuses.append(post(server, (b"{", b'{"prompt": "a", "max_tokens": 1}')[number % 2]).status_code)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 15 + [400] * 15


def test_answers_are_as_the_servers_own_schema_says(server: Server) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    names = (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
    )
    chosen = checks.CHECKS.get_by_names(names)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= {CHAT, TEXTS, "/v1/models", "/v1/moderations"}
    for operation in operations:

        @settings(
            max_examples=10,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def conforms(case: schemathesis.Case) -> None:
            case.call_and_validate(base_url=server.url, checks=chosen)

        conforms()
