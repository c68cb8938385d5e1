"""Finds personal data and secrets in a text that grows, exactly what is found in the whole of it."""

import re
from collections.abc import Mapping, Sequence

from megalm.corpus.clean.pii_find import MASKS, find
from megalm.corpus.clean.pii_patterns import Kind
from megalm.moderation.window import Hit, Scan, Window

CONTEXT = 96
"""Characters before a place that patterns look back at, at most."""
LONGEST = 4096
"""Characters that are held back at most; what is longer is looked at in parts of this length."""
KEY_CHARACTERS = 20_000
"""Between the lines that frame a private key."""

# Where something could be cut in two: not in words, and behind digits not in what may go on as a number.
_GAP = re.compile(r"(?<=[\s。，、！？；：])(?=\S)")
_NUMBERS = re.compile(r"[\dA-Z .()/+-]{2,}")
_DIGIT = re.compile(r"\d")
_KEY = "-----BEGIN "
_KEY_HEAD = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_HEAD_CHARACTERS = 110


class PersonalScan(Scan):
    """Looks for the kinds of one category; words are settled as soon as the next one begins, numbers when they have ended."""

    def __init__(self, kinds: Sequence[Kind], category: str, masks: Mapping[Kind, str] = MASKS) -> None:
        self.kinds, self.category, self.masks = kinds, category, masks

    def feed(self, window: Window, final: bool) -> list[Hit]:
        """As `Scan`."""
        hits: list[Hit] = []
        begin = last = self.settled
        while True:
            ahead = window.slice(last, last + LONGEST + 1)
            if final and len(ahead) <= LONGEST:
                last += len(ahead)
                break
            if cut := _last_cut(ahead):
                last += cut
            elif len(ahead) > LONGEST:
                hits += self._look(window, begin, last) + self._look(window, last, last + LONGEST)
                begin = last = last + LONGEST
            else:
                break
        self.settled = last
        return hits + self._look(window, begin, last)

    def _look(self, window: Window, begin: int, end: int) -> list[Hit]:
        if begin == end:
            return []
        start = max(0, begin - CONTEXT)
        text = window.slice(start, end)
        return [
            Hit(start + match.begin, start + match.end, self.category, self.masks[match.kind])
            for match in find(text, self.kinds)
            if start + match.begin >= begin and not text.startswith(_KEY, match.begin)  # KeyScan's
        ]


def _last_cut(text: str) -> int:
    """The last place of `text` that no match spans, whatever comes behind it; 0: there is none yet."""
    held = []
    for numbers in _NUMBERS.finditer(text):
        if digit := _DIGIT.search(text, numbers.start(), numbers.end()):
            held.append((digit.start(), numbers.end()))
    found = 0
    for gap in _GAP.finditer(text, 1):
        while held and held[0][1] <= gap.start():
            held.pop(0)
        if not held or gap.start() <= held[0][0]:
            found = gap.start()
    return found


class KeyScan(Scan):
    """Looks for private keys, which have many lines; from the beginning of one to its end nothing is settled."""

    def __init__(self, category: str, mask: str) -> None:
        self.category, self.mask = category, mask

    def feed(self, window: Window, final: bool) -> list[Hit]:
        """As `Scan`."""
        hits: list[Hit] = []
        text, place = window.text, self.settled - window.start
        while (begin := text.find(_KEY, place)) >= 0:
            place = begin
            head = _KEY_HEAD.match(text, begin)
            if head is None:
                if len(text) - begin < _HEAD_CHARACTERS and not final:
                    break
                place += 1
                continue
            closing = head[0].replace("BEGIN", "END")
            end = text.find(closing, head.end(), head.end() + KEY_CHARACTERS)
            if end >= 0:
                place = end + len(closing)
                span = window.start + begin, window.start + place
                hits.append(Hit(*span, self.category, self.mask))
            elif final or len(text) >= head.end() + KEY_CHARACTERS:
                place = head.end()
            else:
                break
        else:
            place = len(text) if final else max(place, len(text) - _begun(text))
        self.settled = window.start + place
        return hits


def _begun(text: str) -> int:
    """Characters at the end of `text` with which a key may begin."""
    return next((length for length in range(len(_KEY) - 1, 0, -1) if text.endswith(_KEY[:length])), 0)
