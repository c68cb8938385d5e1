"""The steps `url_blocklist` and `url_words`: remove pages by their address, before any work on the page itself."""

import re
from pathlib import Path

from datatrove.data import Document
from datatrove.utils._import_utils import ASSETS_PATH
from pydantic import Field

from megalm.config.section import Section
from megalm.corpus.clean.url_index import UrlIndex, build_index, cache_folder
from megalm.corpus.step import Filter
from megalm.errors import UserError

_NOT_WORD = re.compile(r"[^a-z0-9]+")
_MAX_URL = 4096


class UrlBlocklist(Filter):
    """Removes pages of blocked domains, their subdomains, and blocked paths with all below them.

    Documents without `metadata["url"]` pass.
    """

    name = "url_blocklist"

    class Settings(Section):
        """Options of the step `url_blocklist`."""

        lists: list[Path] = Field(
            [],
            description="Files with a domain or an address a line, plain, .gz or .tar.gz; folders of such files.",
        )
        packaged: bool = Field(
            True,
            description="Use the list of adult and malicious sites that comes with datatrove, too (4.6 million).",
        )
        domain: bool = Field(True, description="Remove pages on a listed host itself.")
        subdomain: bool = Field(True, description="Remove pages on a host below a listed one.")
        path: bool = Field(True, description="Remove pages at or below a listed address.")
        cache: Path | None = Field(
            None, description="Folder for the compact form of the lists; by default in the user's cache."
        )

    settings: Settings

    def files(self) -> list[Path]:
        """The lists."""
        return list_files(self.settings)

    def start(self) -> None:
        """Map the array of all lists; the first worker makes it."""
        path, names = build_index(list_files(self.settings), self.settings.cache or cache_folder())
        self._index = UrlIndex(path, names)

    def check(self, document: Document) -> str | None:
        """A reason for an address that is blocked; the list's name goes to the metadata."""
        url = document.metadata.get("url")
        found = self._index.find(url) if url else None
        if found is None:
            return None
        rule, name = found
        if not getattr(self.settings, rule):
            return None
        document.metadata["blocklist"] = name
        self.count(f"list.{name}")
        return f"url_blocklist.{rule}"


class UrlWords(Filter):
    """Removes pages by words in their address, as FineWeb (RefinedWeb, Penedo et al. 2023, arXiv:2306.01116, G.1) does."""

    name = "url_words"

    class Settings(Section):
        """Options of the step `url_words`; lists left out are those that come with datatrove."""

        words: list[str] | None = Field(
            None, description="Remove addresses with one of these as a whole word."
        )
        soft_words: list[str] | None = Field(
            None, description="Remove addresses with `soft_threshold` of these as whole words."
        )
        soft_threshold: int = Field(2, ge=1, description="How many different soft words are too many.")
        parts: list[str] | None = Field(
            None,
            description="Remove addresses that hold one of these once all but letters and digits is left out.",
        )

    settings: Settings

    def start(self) -> None:
        """Read the lists."""
        settings = self.settings
        self._words = _word_list(settings.words, "banned_words.txt")
        self._soft_words = _word_list(settings.soft_words, "soft_banned_words.txt")
        parts = sorted(_word_list(settings.parts, "banned_subwords.txt"))
        self._parts = re.compile("|".join(map(re.escape, parts)) if parts else r"(?!)")

    def check(self, document: Document) -> str | None:
        """A reason for an address with such words."""
        url = str(document.metadata.get("url") or "")[:_MAX_URL].lower()
        words = set(_NOT_WORD.split(url))
        if words & self._words:
            return "url_words.word"
        if len(words & self._soft_words) >= self.settings.soft_threshold:
            return "url_words.soft_words"
        if self._parts.search(_NOT_WORD.sub("", url)):
            return "url_words.part"
        return None


def list_files(settings: UrlBlocklist.Settings) -> list[Path]:
    """The files that the settings name; raises UserError where there is none."""
    files: list[Path] = []
    for path in settings.lists:
        files += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    if settings.packaged:
        files += sorted(Path(ASSETS_PATH).glob("url_filterblacklists*.tar.gz"))
    if not files:
        raise UserError("url_blocklist has no list; name files in `lists` or leave `packaged` on")
    return files


def _word_list(words: list[str] | None, packaged: str) -> set[str]:
    if words is None:
        words = (Path(ASSETS_PATH) / packaged).read_text(encoding="utf-8").splitlines()
    return {_NOT_WORD.sub("", word.lower()) for word in words if word and not word.startswith("#")} - {""}
