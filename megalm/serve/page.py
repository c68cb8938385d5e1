"""The web page of a server: its files, and what a browser is told about them."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response

from megalm.serve.api.errors import ApiError

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, and asked for with its tag: a new version of megalm is seen at once
}

router = APIRouter()


@dataclass(frozen=True)
class PageFile:
    """One of the page's files. tag: of its content, for caches."""

    content: bytes
    type: str
    tag: str


@cache
def page_files() -> dict[str, PageFile]:
    """All of them by name. Nothing else is ever sent: names of requests are looked up here, not on the disk."""
    found = {}
    for path in sorted((Path(__file__).parent / "static").iterdir()):
        if path.suffix in _TYPES:
            content = path.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[path.name] = PageFile(content, _TYPES[path.suffix], tag)
    return found


@router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
async def page(request: Request) -> Response:
    """The page itself."""
    return _answer("index.html", request)


@router.api_route("/page/{name:path}", methods=["GET", "HEAD"], include_in_schema=False)
async def part(name: str, request: Request) -> Response:
    """What it is made of. 404 for other names."""
    return _answer(name, request)


def _answer(name: str, request: Request) -> Response:
    file = page_files().get(name)
    if file is None:
        raise ApiError(404, "the page has no such file")
    headers = _HEADERS | {"ETag": file.tag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if file.tag in known:
        return Response(None, 304, headers)
    return Response(file.content, headers=headers, media_type=file.type)
