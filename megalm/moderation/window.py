"""The part of a growing text that is still looked at, and what is found in it."""

from dataclasses import dataclass
from typing import NamedTuple


class Hit(NamedTuple):
    """A place in a text, [begin, end) in characters from its beginning, that a category does not want.

    mask: what stands there instead, where the category masks.
    """

    begin: int
    end: int
    category: str
    mask: str
    score: float = 1.0


@dataclass
class Window:
    """A text of which the beginning may be forgotten; places count from the beginning of the whole."""

    text: str = ""
    start: int = 0

    @property
    def end(self) -> int:
        """Characters of the whole text so far."""
        return self.start + len(self.text)

    def slice(self, begin: int, end: int) -> str:
        """The characters [begin, end) as far as they are there and not forgotten."""
        return self.text[max(0, begin - self.start) : max(0, end - self.start)]

    def forget(self, before: int) -> None:
        """Drop what comes before that place."""
        if before - self.start > 1024:  # not a few characters each time
            self.text, self.start = self.text[before - self.start :], before


class Scan:
    """One way of looking through a text as it grows; what it finds depends on the text alone, not on how it came in pieces."""

    settled = 0
    """No hit that is still to come begins before this place."""

    def feed(self, window: Window, final: bool) -> list[Hit]:
        """What is found now that the window has grown; final: it grows no more."""
        raise NotImplementedError

    def scores(self) -> dict[str, float]:
        """The highest score of each category for which there are any between nothing and found."""
        return {}
