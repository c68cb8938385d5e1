"""The links of a page, as a polite crawler may follow them."""

from typing import Any
from urllib.parse import urldefrag, urljoin, urlsplit, urlunsplit

_LONGEST_URL = 2000
_DEFAULT_PORTS = {"http": 80, "https": 443}


def links_in(page: bytes, url: str) -> list[str]:
    """Where the page at `url` links to, in order, once each; nothing that it asks robots not to follow."""
    from resiliparse.parse.html import HTMLTree

    document: Any = HTMLTree.parse(page.decode("utf-8", "replace")).document
    if document is None:
        return []
    for meta in document.query_selector_all('meta[name="robots" i]'):
        directives = {word.strip() for word in meta.getattr("content", "").lower().split(",")}
        if directives & {"nofollow", "none"}:
            return []
    bases = document.query_selector_all("base[href]")
    base = urljoin(url, bases[0].getattr("href", "")) if len(bases) else url
    found: dict[str, None] = {}
    for link in document.query_selector_all("a[href]"):
        if "nofollow" in link.getattr("rel", "").lower().split():
            continue
        if (target := normalize(base, link.getattr("href", ""))) is not None:
            found[target] = None
    return list(found)


def normalize(base: str, link: str) -> str | None:
    """The address of `link` on the page `base`, in one spelling; None for what is no page of the web."""
    try:
        parts = urlsplit(urldefrag(urljoin(base, link.strip())).url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    if port not in (None, _DEFAULT_PORTS[parts.scheme]):
        host = f"{host}:{port}"
    url = urlunsplit((parts.scheme, host, parts.path or "/", parts.query, ""))
    return url if len(url) <= _LONGEST_URL and url.isascii() and not set(url) & set(" \t\r\n") else None


def host_of(url: str) -> str:
    """Host and port of an address; http and https of a host are one."""
    return urlsplit(url).netloc
