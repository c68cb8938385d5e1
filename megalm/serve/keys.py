"""API keys: random, shown once, kept as hashes in a file of JSON lines that is read again when it changes."""

import hashlib
import hmac
import json
import logging
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from megalm import atomic
from megalm.errors import UserError
from megalm.lineage.record import now

logger = logging.getLogger(__name__)

PREFIX = "megalm-"
_BYTES = 32


@dataclass(frozen=True)
class Key:
    """Who may ask. sha256: of the key, which has 256 random bits, so that no salt is needed. Limits: None: the server's."""

    name: str
    sha256: str
    created: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def __post_init__(self) -> None:
        """ValueError for limits that are none."""
        for limit in (self.requests_per_minute, self.tokens_per_minute):
            if limit is not None and (not isinstance(limit, int) or limit < 1):
                raise ValueError(f"{self.name}: {limit!r} a minute is no limit: from 1 on, or null")


class KeyFile:
    """The keys in a file."""

    def __init__(self, path: Path) -> None:
        """UserError for a file that is missing or damaged."""
        self.path = path
        self._stamp: tuple[int, int, int] | None = None
        self._keys: dict[str, Key] = {}
        self._told: str | None = None
        self.read()

    def read(self) -> list[Key]:
        """All of them, as the file has them now."""
        try:
            found = self.path.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if stamp != self._stamp:
                lines = self.path.read_text(encoding="utf-8").splitlines()
                keys = [Key(**json.loads(line)) for line in lines if line.strip()]
                self._keys = {key.sha256: key for key in keys}
                self._stamp = stamp
        except FileNotFoundError:
            raise UserError(
                f"{self.path}: no such file; make it with: megalm serve-keys add NAME --file {self.path}"
            ) from None
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{self.path} is no file of keys ({error}); mend it, or make another") from None
        return list(self._keys.values())

    def find(self, key: str) -> Key | None:
        """Whose key it is; None for nobody's."""
        wanted = _hash(key)
        known = self._keys.get(wanted)
        return known if known is not None and hmac.compare_digest(known.sha256, wanted) else None

    def refresh(self) -> None:
        """Take changes of the file; one that cannot be read changes nothing, and is told once."""
        try:
            self.read()
            self._told = None
        except UserError as error:
            if str(error) != self._told:
                logger.error("%s; until then the keys that were there before hold", error)
            self._told = str(error)


def add_key(
    path: Path, name: str, requests_per_minute: int | None = None, tokens_per_minute: int | None = None
) -> str:
    """Make a key for `name`, put it into the file, and return it: nobody can read it there again."""
    before = KeyFile(path).read() if path.exists() else []
    if not name or any(key.name == name for key in before):
        raise UserError(
            f"{path} has a key for {name!r} already; remove it first" if name else "a key needs a name"
        )
    key = PREFIX + secrets.token_urlsafe(_BYTES)
    _write(path, [*before, Key(name, _hash(key), now(), requests_per_minute, tokens_per_minute)])
    return key


def remove_key(path: Path, name: str) -> None:
    """Take the key of `name` out of the file; a server notices within seconds."""
    before = KeyFile(path).read()
    kept = [key for key in before if key.name != name]
    if len(kept) == len(before):
        raise UserError(
            f"{path} has no key for {name!r}; it has {', '.join(key.name for key in before) or 'none'}"
        )
    _write(path, kept)


def _write(path: Path, keys: list[Key]) -> None:
    atomic.write_text(path, "".join(json.dumps(asdict(key)) + "\n" for key in keys))
    path.chmod(0o600)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
