"""Counts words, as the measure of how finely a tokenizer cuts a language."""

import re
import unicodedata
from collections.abc import Iterable
from functools import cache

# Scripts written without spaces between words: Han, kana, Thai, Lao, Myanmar, Khmer.
UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x2E80, 0x2FDF),
    (0x3005, 0x3007),
    (0x3021, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x1B000, 0x1B16F),
    (0x20000, 0x3FFFF),
)
LAST_LETTER = 0x33480
"""Above it are variation selectors and private use alone."""

_ASCII_WORD = re.compile(r"[A-Za-z0-9]+(?:['-][A-Za-z0-9]+)*")


def count_words(text: str) -> tuple[int, int]:
    """Return how many words `text` has, and how many of them are single characters of a script without spaces.

    A word is a run of letters, marks and digits, with single apostrophes and hyphens inside. In scripts that are
    written without spaces between words (Han, kana, Thai, Lao, Myanmar, Khmer) every letter counts as a word, as
    ideographs do in Unicode's word segmentation (UAX 29): finding their words would need dictionaries.
    """
    if text.isascii():
        return len(_ASCII_WORD.findall(text)), 0
    spaced, unspaced = _patterns()
    characters = len(unspaced.findall(text))
    return len(spaced.findall(text)) + characters, characters


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    kinds = {code: unicodedata.category(chr(code))[0] for code in range(LAST_LETTER)}
    without_spaces = {code for first, last in UNSPACED for code in range(first, min(last + 1, LAST_LETTER))}
    spaced = _character_class(
        code for code, kind in kinds.items() if kind in "LMN" and code not in without_spaces
    )
    unspaced = _character_class(code for code in sorted(without_spaces) if kinds[code] in "LN")
    return re.compile(f"{spaced}+(?:['’-]{spaced}+)*"), re.compile(unspaced)


def _character_class(codes: Iterable[int]) -> str:
    ranges: list[list[int]] = []
    for code in codes:
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "[" + "".join(f"{re.escape(chr(a))}-{re.escape(chr(b))}" for a, b in ranges) + "]"
