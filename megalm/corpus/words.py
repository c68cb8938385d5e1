"""Words, lines, paragraphs and sentences of a document, split once and shared by all rules that read them."""

import re
from functools import cached_property

import numpy as np
import regex
from datatrove.data import Document

# Scripts that put no spaces between words: Thai, Lao, Burmese, Khmer, kana, Han. A character of them is a word.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
# Addresses, initials such as U.S., and behind words: numbers, ellipses, single marks. What may fail at its end is bounded,
# else time would grow with the square of hostile texts.
_FIRST = r"https?://[^\s<>]+|(?<!\w)(?:[A-Z]\.){1,8}(?!\w)"
_LAST = rf"[{_UNSPACED}]|\d+(?:[.,:]\d+)*|\.{{2,}}|_+|[^\w\s]"
_LETTER = rf"[^\W\d_{_UNSPACED}]"
_TOKEN = re.compile(rf"{_FIRST}|\d*{_LETTER}[^\W_{_UNSPACED}]*|(?<=[^\W\d_])['’]{_LETTER}+|{_LAST}")
# Vowel signs, accents and joiners belong to the letters before them; `re` does not know them.
_MARK = regex.compile(r"[\p{M}\u200c\u200d]")
_MARKED = rf"[[\p{{L}}\p{{M}}\u200c\u200d]--[{_UNSPACED}]]"
_MARKED_TOKEN = regex.compile(
    rf"{_FIRST}|\d*{_MARKED}[[\d]||{_MARKED}]*|(?<=[\p{{L}}\p{{M}}])['’]{_MARKED}+|{_LAST}", regex.V1
)
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(r"[.!?…]{1,10}[\"'”’»)\]]{0,4}(?!\S)|[。！？｡।॥؟۔።]")


class Split:
    """The parts of one text; each kind is split when it is first asked for."""

    def __init__(self, text: str):
        self.text = text

    @cached_property
    def tokens(self) -> list[str]:
        """Words, numbers and each mark of punctuation, in order; as spaCy, `it's` is two."""
        marked = not self.text.isascii() and _MARK.search(self.text)
        return (_MARKED_TOKEN if marked else _TOKEN).findall(self.text)

    @cached_property
    def words(self) -> list[str]:
        """The tokens that hold a letter or a digit."""
        return [token for token in self.tokens if token[0].isalnum() or token[-1].isalpha()]

    @cached_property
    def token_ids(self) -> np.ndarray:
        """A number for each token, equal for equal tokens: int64, as many as `tokens`."""
        numbers: dict[str, int] = {}
        return np.fromiter(
            (numbers.setdefault(token, len(numbers)) for token in self.tokens), np.int64, len(self.tokens)
        )

    @cached_property
    def token_lengths(self) -> np.ndarray:
        """The characters of each token: int64, as many as `tokens`."""
        return np.fromiter(map(len, self.tokens), np.int64, len(self.tokens))

    @cached_property
    def lines(self) -> list[str]:
        """The lines that are not blank, as they stand."""
        return [line for line in self.text.split("\n") if line and not line.isspace()]

    @cached_property
    def paragraphs(self) -> list[str]:
        """What blank lines part, without space around."""
        return [part for part in _PARAGRAPH_END.split(self.text.strip()) if part]


_last = Split("")


def split(document: Document) -> Split:
    """The parts of the document's text; kept until another text is asked for.

    Documents pass through a pipeline one at a time, so that the last one is the only one worth keeping.
    """
    global _last
    if _last.text is not document.text:
        _last = Split(document.text)
    return _last


def words_of(document: Document) -> list[str]:
    """The words of the document without punctuation; not to be changed by the caller."""
    return split(document).words


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Where each sentence of `text` begins and ends: behind a mark that ends one; an unended rest is one."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    last = len(text.rstrip())
    if last > (ends[-1] if ends else 0):
        ends.append(last)
    return list(zip([0, *ends], ends, strict=False))


def count_sentences(text: str) -> int:
    """How many sentences `text` has."""
    return len(sentence_spans(text))
