"""The step `bad_words`: removes documents with words of a list, as C4 did (Raffel et al. 2020, section 2.2)."""

import hashlib
import re
from pathlib import Path

from datatrove.data import Document
from pydantic import Field

from megalm.config.section import Section
from megalm.corpus.step import Filter
from megalm.corpus.words import split
from megalm.errors import UserError

_UNSPACED = ("ja", "th", "zh")


class BadWords(Filter):
    """Removes documents that hold a word or phrase of their language's list; languages without a list pass.

    Phrases match at the boundaries of words, whatever the case; in Chinese, Japanese and Thai anywhere.
    """

    name = "bad_words"
    needs_text = True

    class Settings(Section):
        """Options of the step `bad_words`."""

        lists: dict[str, Path] = Field(
            ..., description="A file for each language, a word or phrase a line, such as {en: words.txt}."
        )
        default_language: str = Field(
            "en", description="Which list is for documents that the step `language` has not seen."
        )
        max_share: float = Field(
            0.0,
            ge=0,
            le=1,
            description="Keep documents in which no greater share of the words matches; C4: 0.",
        )
        keep_fraction: float = Field(
            0.0,
            ge=0,
            le=1,
            description="Share of the documents to keep nevertheless, picked by the hash of their id.",
        )

    settings: Settings

    def files(self) -> list[Path]:
        """The lists."""
        return sorted(self.settings.lists.values())

    def verify(self) -> None:
        """The lists must be lists."""
        type(self)(self.settings).start()

    def start(self) -> None:
        """Read the lists."""
        self._patterns = {
            language: pattern_of(path, language) for language, path in self.settings.lists.items()
        }

    def check(self, document: Document) -> str | None:
        """A reason where bad words are found."""
        language = document.metadata.get("language", self.settings.default_language)
        pattern = self._patterns.get(language)
        if pattern is None:
            return None
        text = document.text.lower()
        if self.settings.max_share == 0:
            found = pattern.search(text) is not None
        else:
            matches = sum(1 for _ in pattern.finditer(text))
            found = matches > self.settings.max_share * len(split(document).words)
        if not found:
            return None
        self.count(f"documents.{language}")
        return None if _chance(document.id) < self.settings.keep_fraction else "bad_words.found"


def pattern_of(path: Path, language: str) -> re.Pattern[str]:
    """What finds the words of a file, a word or phrase a line, in lower-case text; UserError for a file that is no list."""
    if not path.exists():
        raise UserError(f"word list {path} for `{language}` does not exist; check the path")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"word list {path} for `{language}` is not UTF-8 ({error}); convert it") from None
    words = {line.strip().lower() for line in text.splitlines()} - {""}
    if not words:
        raise UserError(f"word list {path} for `{language}` is empty; write a word or phrase a line")
    either = "|".join(re.escape(word) for word in sorted(words, key=lambda word: (-len(word), word)))
    return re.compile(either if language in _UNSPACED else rf"(?<!\w)(?:{either})(?!\w)")


def _chance(id: str) -> float:
    digest = hashlib.blake2b(id.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
