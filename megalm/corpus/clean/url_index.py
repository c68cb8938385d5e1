"""Blocked addresses as one sorted array of hashes in a file, which all workers of a machine map into memory."""

import fcntl
import gzip
import hashlib
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np

from megalm import atomic
from megalm.errors import UserError

_SCHEME = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]*://")
_PLAIN_HOST = re.compile(r"[a-z0-9-]+(?:\.[a-z0-9-]+)+")
_MAX_SEGMENTS = 16
_MAX_URL = 4096
_LIST_BITS = 10
_MOST_LISTS = 1 << _LIST_BITS


def address(url: str) -> tuple[str, str, str] | None:
    """Host, path and query of `url` in the form that lists and pages are compared in; None for no address.

    Without scheme, user, port, `www.`, fragment and closing slash; hosts in ASCII and small letters; percent signs
    undone in paths.
    """
    url = url.strip()[:_MAX_URL]
    try:
        parts = urlsplit(url if _SCHEME.match(url) else f"http://{url}")
        host = (parts.hostname or "").rstrip(".")
    except ValueError:
        return None
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            return None
    host = host.removeprefix("www.")
    return (host, unquote(parts.path).rstrip("/"), parts.query) if host else None


def key(text: str) -> int:
    """The hash of `text`, whose lowest bits are free for the number of a list.

    With 54 bits, one lookup in five million entries goes wrong once in 10^9.
    """
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> _LIST_BITS << _LIST_BITS


def entry(line: str) -> str | None:
    """A line of a list as the text that is hashed: a host, or host and path; None for comments and empty lines."""
    line = line.strip()
    if not line or line.startswith("#"):
        return None
    if _PLAIN_HOST.fullmatch(line):
        return line.removeprefix("www.")
    found = address(line)
    if found is None:
        return None
    host, path, query = found
    return f"{host}{path}?{query}" if query else host + path


def candidates(url: str) -> tuple[list[str], list[str]] | None:
    """What `url` is looked up as: host and its parents, then the page itself and the folders above it."""
    found = address(url)
    if found is None:
        return None
    host, path, query = found
    labels = host.split(".")
    numeric = labels[-1].isdigit() or ":" in host
    hosts = [host] if numeric else [".".join(labels[i:]) for i in range(max(1, len(labels) - 1))]
    pages = [f"{host}{path}?{query}"] if query else []
    segments = path.split("/")[1:]
    pages += [f"{host}/{'/'.join(segments[:i])}" for i in range(min(len(segments), _MAX_SEGMENTS), 0, -1)]
    return hosts, pages


def build_index(lists: Iterable[Path], folder: Path) -> tuple[Path, list[str]]:
    """Make the sorted array of all entries of `lists`, once for the same files; return its path and the names of lists.

    An entry is 8 bytes: a hash, and in its lowest bits the number of the list.
    """
    lists = list(lists)
    if len(lists) > _MOST_LISTS:
        raise UserError(f"{len(lists)} blocklists are too many; join them into at most {_MOST_LISTS}")
    for path in lists:
        if not path.exists():
            raise UserError(f"blocklist {path} does not exist; check the path")
    names = [list_name(path) for path in lists]
    stamp = "\n".join(f"{p.resolve()} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in lists)
    target = folder / f"{hashlib.sha256(stamp.encode()).hexdigest()[:24]}.npy"
    folder.mkdir(parents=True, exist_ok=True)
    with open(target.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # workers that begin together wait for the first
        if not target.exists():
            entries = np.fromiter(_entries(lists), np.uint64)
            entries.sort()
            with atomic.open_atomic(target) as file:
                np.save(file, entries)
    return target, names


class UrlIndex:
    """Looks addresses up in an array that `build_index` made."""

    def __init__(self, path: Path, names: list[str]):
        self._entries = np.load(path, mmap_mode="r")
        self._names = names

    def find(self, url: str) -> tuple[str, str] | None:
        """Which rule blocks `url` ("domain", "subdomain" or "path") and the name of its list, or None."""
        looked_up = candidates(url)
        if looked_up is None or not len(self._entries):
            return None
        hosts, pages = looked_up
        keys = np.fromiter(map(key, hosts + pages), np.uint64)
        places = np.minimum(np.searchsorted(self._entries, keys), len(self._entries) - 1)
        entries = self._entries[places]
        hits = np.flatnonzero(entries >> _LIST_BITS == keys >> _LIST_BITS)
        if not len(hits):
            return None
        first = int(hits[0])
        rule = "domain" if first == 0 else "subdomain" if first < len(hosts) else "path"
        return rule, self._names[int(entries[first]) % _MOST_LISTS]


def list_name(path: Path) -> str:
    """The name of a list: its file's up to the first dot, or its folder's for files called domains or urls."""
    name = path.name.split(".")[0]
    return path.parent.name if name in ("domains", "urls") else name


def cache_folder() -> Path:
    """Where arrays are kept between runs: below XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "megalm" / "blocklists"


def _entries(lists: Iterable[Path]) -> Iterator[int]:
    for number, path in enumerate(lists):
        for line in _lines(path):
            text = entry(line)
            if text:
                yield key(text) | number


def _lines(path: Path) -> Iterator[str]:
    if path.name.endswith((".tar.gz", ".tgz")):
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None:
                    yield from (line.decode("utf-8", "replace") for line in file)
    else:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            yield from (line.decode("utf-8", "replace") for line in lines)
