"""Folds characters so that spellings which look or read alike become the same."""

import unicodedata

_SPACES = "-_/\\\u2010\u2011\u2012\u2013\u2014\u2015"
_APOSTROPHES = "'`\u00b4\u2018\u2019\u02bc"
_DISGUISES = dict(
    zip(
        "013457@$!|8lаеорсухкіѕοαεικρυντ",
        "oieastasiibiaeopcyxkisoaeikpuvt",
        strict=True,
    )
)
"""Digits and signs that stand for letters, Cyrillic and Greek letters that look like Latin ones; `l`, `1` and `i` are one."""
_REMEMBERED = 1 << 16


class Fold(dict[str, tuple[str, bool]]):
    """Of each character what it becomes, and whether it is part of a word; nothing, where it cannot be seen.

    Compatible forms (NFKD), case, accents, hyphens, apostrophes and invisible characters make no difference. Each character is folded by itself,
    so that a text can be folded as it grows. disguised: digits and letters that look alike make none either.
    """

    def __init__(self, disguised: bool) -> None:
        super().__init__()
        self.disguised = disguised

    def __missing__(self, character: str) -> tuple[str, bool]:
        is_word = character.isalnum() or unicodedata.category(character) in ("Mn", "Mc")
        found = self._fold(character), is_word
        if len(self) < _REMEMBERED:
            self[character] = found
        return found

    def text(self, text: str) -> str:
        """All characters of `text`, runs of spaces as one."""
        return " ".join("".join(self[character][0] for character in text).split())

    def _fold(self, character: str) -> str:
        if character in _SPACES or character.isspace():
            return " "
        if character in _APOSTROPHES or unicodedata.category(character) == "Cf":
            return ""  # joiners, soft hyphens, marks of direction, too
        plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
        seen = "".join(" " if one.isspace() else one for one in plain if not _is_accent(one))
        return "".join(_DISGUISES.get(one, one) for one in seen) if self.disguised else seen


def _is_accent(character: str) -> bool:
    """Combining diacritical marks and variation selectors; vowel signs of other scripts are letters."""
    code = ord(character)
    return (
        0x300 <= code <= 0x36F
        or 0x1AB0 <= code <= 0x1AFF
        or 0x1DC0 <= code <= 0x1DFF
        or 0x20D0 <= code <= 0x20FF
        or 0xFE00 <= code <= 0xFE0F
        or 0xFE20 <= code <= 0xFE2F
        or 0xE0100 <= code <= 0xE01EF
    )
