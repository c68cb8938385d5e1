"""The page's files as they are sent: what a browser is told about them, what is not to be had, and that nothing comes from elsewhere."""

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from megalm.serve.app import make_app
from megalm.serve.page import page_files
from megalm.serve.pool import Pool
from megalm.serve.service import Service
from megalm.serve.settings import parse_serve_settings
from tests.serve.servers import Server

POLICY = {
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src 'self' data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
}


def test_files_come_whole_and_are_guarded(server: Server) -> None:
    client = server.client()
    for name, file in page_files().items():
        found = client.get("/" if name == "index.html" else f"/page/{name}")
        assert (found.status_code, found.content) == (200, file.content)
        assert found.headers["content-type"] == file.type
        assert set(found.headers["content-security-policy"].split("; ")) == POLICY
        assert found.headers["x-content-type-options"] == "nosniff"
        assert found.headers["referrer-policy"] == "no-referrer"
        head = client.head(f"/page/{name}")
        assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", file.tag)


def test_what_a_browser_has_already_is_not_sent_again(server: Server) -> None:
    client = server.client()
    first = client.get("/")
    assert first.headers["cache-control"] == "no-cache"
    for tag in (first.headers["etag"], f'"other", W/{first.headers["etag"]}'):
        again = client.get("/", headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
    assert client.get("/", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/page/",
        "/page/../page.py",
        "/page/..%2fpage.py",
        "/page/%2e%2e/page.py",
        "/page/..%5cpage.py",
        "/page//etc/passwd",
        "/page/%2Fetc%2Fpasswd",
        "/page/main.js%00.html",
        "/page/main.js/",
        "/static/main.js",
    ],
)
def test_other_names_are_not_found(server: Server, path: str) -> None:
    answer = server.client().get(path)
    assert answer.status_code == 404 and set(answer.json()) == {"error"}


def test_the_page_names_no_other_place() -> None:
    for name, file in page_files().items():
        text = file.content.decode()
        assert set(re.findall(r"https?://[^\s\"'`)]+", text)) <= {"http://www.w3.org/2000/svg"}, name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), name
        assert not re.search(r"\son\w+=|\sstyle=|javascript:", text.replace("javascript: above all", "")), (
            name
        )


def test_every_module_that_is_imported_is_there() -> None:
    files = page_files()
    for name, file in files.items():
        text = file.content.decode()
        for other in re.findall(r"from \"\./([^\"]+)\"|(?:src|href)=\"page/([^\"]+)\"", text):
            assert "".join(other) in files, name


def test_features_are_told(server: Server) -> None:
    found = server.client().get("/v1/features").json()
    assert set(found) == {"feedback", "moderation", "reasons", "version"}
    assert set(found["reasons"]) == {"up", "down"}


def test_a_server_can_be_without_the_page(run: Path) -> None:
    for page, status in ((True, 200), (False, 404)):
        settings = parse_serve_settings(None, {"models": [{"checkpoint": str(run)}], "page": page}, [])
        client = TestClient(make_app(Service(settings, Pool(settings.models), None)))
        assert [client.get(path).status_code for path in ("/", "/page/main.js")] == [status, status]
        assert client.get("/health").status_code == 200
