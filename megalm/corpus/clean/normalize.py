"""The step `normalize`: repairs and unifies the characters of a text (mojibake, NFC, spaces, control characters)."""

import re
import unicodedata

from datatrove.data import Document
from pydantic import Field

from megalm.corpus.step import ForLanguages, Transform

_SURROGATES = re.compile("[\ud800-\udfff]")
_LINE_ENDS = re.compile("\r\n?|[\v\f\x1c-\x1e\x85\u2028\u2029]")
# Controls, soft hyphens, zero-width spaces, byte order marks, directions. Joiners stay: Persian, Indic scripts and
# emoji need them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]"
)
_SPACES = re.compile("[\t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_RUNS = re.compile(r"(?<=[^ \n])  +(?=[^ \n])")
_BLANK_LINES = re.compile(r"\n{3,}")
_PUNCTUATION = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        **dict.fromkeys("‐‑‒–—―−", "-"),
        "…": "...",
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # full-width forms
    }
)
# Mojibake has two characters beyond ASCII in a row (the last perhaps turned into a space), or control characters.
_SUSPECT = re.compile("[\x80-\x9f]|[^\x00-\x7f]{2}|Ã ")
_REPAIR_CHARACTERS = 1_000_000


class Normalize(Transform):
    """Unifies the text's characters; each part can be switched off, lower-casing and plain punctuation switched on."""

    name = "normalize"

    class Settings(ForLanguages):
        """Options of the step `normalize`."""

        repair: bool = Field(
            True, description="Undo text that was decoded wrongly (mojibake) as far as it is certain."
        )
        nfc: bool = Field(True, description="Compose characters and their accents (Unicode NFC).")
        control_characters: bool = Field(
            True,
            description="Remove control characters, soft hyphens, zero-width and direction marks; unify line ends.",
        )
        spaces: bool = Field(
            True, description="Unify spaces, cut them at the ends of lines, keep at most one blank line and, within a "
            "line, one space; indentation stays."
        )  # fmt: skip
        lower_case: bool = Field(False, description="Turn all letters into small ones.")
        plain_punctuation: bool = Field(
            False, description="Turn typographic quotes, dashes, ... into those of ASCII."
        )

    settings: Settings

    def change(self, document: Document) -> str | None:
        """Unify; a text of which nothing is left is removed."""
        text = normalize(document.text, self.settings)
        if text != document.text:
            self.count("documents_changed")
            document.text = text
        return None if text else "normalize.empty"


def normalize(text: str, settings: Normalize.Settings) -> str:
    """The text with the parts that `settings` name unified, in an order in which no part undoes another."""
    if not text.isascii():
        text = _SURROGATES.sub("\ufffd", text)
        if settings.repair:
            text = repair(text)
    if settings.control_characters:
        text = _INVISIBLE.sub("", _LINE_ENDS.sub("\n", text))
    if settings.spaces:
        text = _SPACES.sub(" ", text)
        text = "\n".join([line.rstrip(" ") for line in _RUNS.sub(" ", text).split("\n")])
        text = _BLANK_LINES.sub("\n\n", text).strip("\n")
    if settings.lower_case:
        text = text.lower()
    if settings.plain_punctuation:
        text = text.translate(_PUNCTUATION)
    if settings.nfc and not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return text


def repair(text: str) -> str:
    """Undo mojibake line by line with ftfy; texts beyond a million characters stay, as its time is not bounded."""
    from ftfy import fix_encoding
    from ftfy.badness import is_bad

    if len(text) > _REPAIR_CHARACTERS or not _SUSPECT.search(text) or not is_bad(text):
        return text
    return "\n".join(fix_encoding(line) if is_bad(line) else line for line in text.split("\n"))
