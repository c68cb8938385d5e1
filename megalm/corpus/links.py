"""The links of a page, as a polite crawler may follow them."""

import string
from typing import Any
from urllib.parse import quote, urldefrag, urljoin, urlsplit, urlunsplit

_LONGEST_URL = 2000
_UNQUOTED = string.punctuation.translate(str.maketrans("", "", '"<>'))
_DEFAULT_PORTS = {"http": 80, "https": 443}


def links_in(page: bytes, url: str) -> list[str]:
    """Where the page at `url` links to, in order, once each; nothing that it asks robots not to follow."""
    from lxml import etree

    seen = _Links()
    parser = etree.HTMLParser(target=seen, recover=True, huge_tree=True, encoding="utf-8")
    try:
        parser.feed(page.decode("utf-8", "replace").encode())
        parser.close()
    except etree.LxmlError:
        pass  # no markup at all, or its end; what came before counts
    if seen.nofollow:
        return []
    base = urljoin(url, seen.base)
    targets = (normalize(base, link) for link in seen.links)
    return list(dict.fromkeys(target for target in targets if target is not None))


def normalize(base: str, link: str) -> str | None:
    """The address of `link` on the page `base`, in one spelling; None for what is no page of the web.

    Without fragment, user and password, and without steps `.` and `..`, which would lead around the rules of robots.txt;
    what ASCII lacks is written as browsers do.
    """
    try:
        parts = urlsplit(urldefrag(urljoin(base, link.strip())).url)
        port = parts.port
        host = (parts.hostname or "").removesuffix(".")
        host = f"[{host}]" if ":" in host else host.encode("idna").decode()
    except ValueError:
        return None
    if parts.scheme not in _DEFAULT_PORTS or not host or set(host) & set(" %\\"):
        return None
    if port not in (None, _DEFAULT_PORTS[parts.scheme]):
        host = f"{host}:{port}"
    path, query = (quote(part, _UNQUOTED) for part in (_without_steps(parts.path or "/"), parts.query))
    url = urlunsplit((parts.scheme, host, path, query, ""))
    return url if len(url) <= _LONGEST_URL else None


def host_of(url: str) -> str:
    """Host and port of an address; http and https of a host are one."""
    return urlsplit(url).netloc


def _without_steps(path: str) -> str:
    kept: list[str] = []
    segments = path.split("/")
    plain = [segment.replace("%2e", ".").replace("%2E", ".") for segment in segments]
    for segment, name in zip(segments, plain, strict=True):
        if name == "..":
            kept = kept[:1] + kept[1:-1]
        elif name != ".":
            kept.append(segment)
    return "/".join([*kept, ""] if plain[-1] in (".", "..") else kept)


class _Links:
    """Takes the start of each element, so that no tree is made of the page."""

    def __init__(self) -> None:
        self.links: list[str] = []
        self.base = ""
        self.nofollow = False

    def start(self, tag: str, attributes: Any) -> None:
        if tag == "a" and "nofollow" not in attributes.get("rel", "").lower().split():
            if "href" in attributes:
                self.links.append(attributes["href"])
        elif tag == "base":
            self.base = self.base or attributes.get("href", "")
        elif tag == "meta" and attributes.get("name", "").lower() == "robots":
            directives = {word.strip() for word in attributes.get("content", "").lower().split(",")}
            self.nofollow |= bool(directives & {"nofollow", "none"})

    def close(self) -> None:
        pass
