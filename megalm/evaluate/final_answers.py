"""Finds the answer that a text comes to, a number, a phrase or code, and says whether two answers are the same."""

import re
import unicodedata
from fractions import Fraction

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(
    # a minus behind a digit, a letter or a bracket is an operator or a hyphen
    rf"(?:(?<![\w)\].])[-+]\s?)?\$?(?:{_DIGITS}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?:\s?/\s?\d+(?![\d.,]*\d))?"
)
_FRACTION = re.compile(r"([-+]?)\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_COMMAND = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\{([^{}]*)\}")
_NOISE = re.compile(r"\\(?:left|right|[,;!: ])|[$`*]")
_BLOCK = re.compile(r"^[ \t]*```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.M | re.S | re.I)
_OUTER = " \t\n.,;:!?\"'“”‘’"
_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_HASHES = "####"
_MOST_DIGITS = 1000  # a longer number is a text; a power of ten with more digits would fill the memory
_MINUS = str.maketrans({"−": "-", "–": "-"})


def last_number(text: str) -> str | None:
    """The last number in `text`, such as `-1,234.5` or `3/4`."""
    numbers = _NUMBER.findall(text.translate(_MINUS))
    return numbers[-1] if numbers else None


def after_hashes(text: str) -> str | None:
    """What stands behind the last #### up to the end of the line, as in GSM8K (arXiv:2110.14168)."""
    _, hashes, rest = text.rpartition(_HASHES)
    return rest.strip().split("\n")[0].strip() if hashes else None


def boxed(text: str) -> str | None:
    r"""What the last \boxed{...} holds, braces within it paired; as in MATH (arXiv:2103.03874). None where it is not closed."""
    starts = [found.end() for found in _BOX.finditer(text)]
    if not starts:
        return None
    rest = text[starts[-1] :]
    if not rest.startswith("{"):
        return rest.split(maxsplit=1)[0].rstrip(".$") if rest.strip() else None
    depth = 0
    for place, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[1:place]
    return None


def same_answer(one: str, other: str) -> bool:
    """Whether two answers are the same number, or else the same text after `plain`."""
    numbers = as_number(one), as_number(other)
    if None not in numbers:
        return numbers[0] == numbers[1]
    return plain(one) == plain(other)


def as_number(text: str) -> Fraction | None:
    """The number that `text` is: 1,000 or $1000.0 or 1e3, 3/4 or \\frac{3}{4}, 50% (the sign is dropped); None if it is none."""
    text = _FRACTION.sub(r"\1\2/\3", _NOISE.sub("", text.translate(_MINUS)).replace("\\%", "%"))
    text = text.strip(" \t\n,;:!?").rstrip(".%").replace(" ", "")
    if len(text) > _MOST_DIGITS or not _NUMBER.fullmatch(text):
        return None
    mantissa, _, exponent = text.replace(",", "").lower().partition("e")
    if len(exponent) > 4:
        return None
    try:
        top, _, bottom = mantissa.partition("/") if not exponent else (mantissa, "", "")
        number = Fraction(f"{top}e{exponent}" if exponent else top)
        return number / Fraction(bottom) if bottom else number
    except (ValueError, ZeroDivisionError):
        return None


def plain(text: str) -> str:
    """Small letters in compatibility form, single spaces, without marks around and without TeX's dress."""
    text = _COMMAND.sub(r"\1", _NOISE.sub("", text))
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_OUTER)


def code_of(response: str) -> str:
    """The last fenced block of Python (or of no language) in a response; without one, all of it."""
    blocks = _BLOCK.findall(response)
    return blocks[-1] if blocks else response
