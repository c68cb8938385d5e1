"""Text that remembers where each of its characters came from, through whatever a chat template does to it."""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, SupportsIndex

Span = tuple[int, int, int]
"""Characters [start, stop) and the number of the source that gave them."""

# One character stands for one tracked text while a function runs on trial.
STAND_INS = 0xF0000
MAX_STAND_INS = 65_000


class Tracked(str):
    """A text with the sources of its characters; characters without a span are the template's own.

    Slices, `+`, and the methods that take a text apart or join it keep exact spans.
    """

    __slots__ = ("spans",)
    spans: tuple[Span, ...]

    def __new__(cls, text: str, spans: Iterable[Span] = ()) -> "Tracked":
        tracked = super().__new__(cls, text)
        tracked.spans = tuple(spans)
        return tracked

    def __str__(self) -> str:
        return self  # so that str(), which templates are full of, forgets nothing

    def __add__(self, other: str) -> str:
        return concat((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return concat((other, self)) if isinstance(other, str) else NotImplemented

    def __iter__(self) -> Iterator[str]:
        return (self.cut(i, i + 1) for i in range(len(self)))

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        text = super().__getitem__(key)
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            return self.cut(start, max(start, stop)) if step == 1 else whole(text, self.sources())
        start = range(len(self))[key]
        return self.cut(start, start + 1)

    def sources(self) -> set[int]:
        """The sources that any of its characters came from."""
        return {source for _, _, source in self.spans}

    def cut(self, start: int, stop: int) -> "Tracked":
        """Characters [start, stop)."""
        text = super().__getitem__(slice(start, stop))
        inside = ((max(a, start) - start, min(b, stop) - start, source) for a, b, source in self.spans)
        return Tracked(text, (span for span in inside if span[0] < span[1]))

    def strip(self, chars: str | None = None, /) -> str:
        start = len(self) - len(super().lstrip(chars))
        return self.cut(start, start + len(super().strip(chars)))

    def lstrip(self, chars: str | None = None, /) -> str:
        return self.cut(len(self) - len(super().lstrip(chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> str:
        return self.cut(0, len(super().rstrip(chars)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._found(super().split(sep, maxsplit), len(sep or ""))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._found(super().rsplit(sep, maxsplit), len(sep or ""))

    def splitlines(self, keepends: bool = False) -> list[str]:
        return self._found(super().splitlines(keepends), 0)

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        before, middle, after = self._found(super().partition(sep), 0)
        return before, middle, after

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        before, middle, after = self._found(super().rpartition(sep), 0)
        return before, middle, after

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        if not old:
            return whole(super().replace(old, new, count), self.sources())
        first, *others = self.split(old, count)
        return concat((first, *(part for piece in others for part in (new, piece))))

    def lower(self) -> str:
        return self._recased(super().lower())

    def upper(self) -> str:
        return self._recased(super().upper())

    def capitalize(self) -> str:
        return self._recased(super().capitalize())

    def title(self) -> str:
        return self._recased(super().title())

    def _recased(self, text: str) -> str:
        return Tracked(text, self.spans) if len(text) == len(self) else whole(text, self.sources())

    def _found(self, pieces: Sequence[str], separator: int) -> list[str]:
        """`pieces` stand in this text in their order, at least `separator` characters apart."""
        found, position = [], -separator
        for piece in pieces:
            start = super().index(piece, position + separator)
            position = start + len(piece)
            found.append(self.cut(start, position))
        return found  # type: ignore[return-value]


def whole(text: str, sources: Iterable[int]) -> str:
    """`text` with every character from `sources`; plain where there are none."""
    spans = tuple((0, len(text), source) for source in sources) if text else ()
    return Tracked(text, spans) if spans else str.__str__(text)


def concat(pieces: Iterable[str]) -> str:
    """The `pieces` joined, each with its spans."""
    texts: list[str] = []
    spans: list[Span] = []
    length = 0
    for piece in pieces:
        for start, stop, source in getattr(piece, "spans", ()):
            if spans and spans[-1][1:] == (length + start, source):
                spans[-1] = (spans[-1][0], length + stop, source)  # characters one by one stay one span
            else:
                spans.append((length + start, length + stop, source))
        texts.append(piece)
        length += len(piece)
    text = "".join(texts)
    return Tracked(text, spans) if spans else text


def apply(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`function(*args, **kwargs)`, where a text that it returns keeps the sources of the tracked texts it was made from.

    For functions without side effects, which may run a second time: with one character in the place of each
    tracked text. Where that does not show which characters are whose, all of the result is of all sources.
    """
    args = tuple(
        list(value) if isinstance(value, Iterator) else value for value in args
    )  # they are read twice
    result = function(*args, **kwargs)
    if not isinstance(result, str) or isinstance(result, Tracked):
        return result
    texts: list[Tracked] = []
    marked_args, marked_kwargs = _with_stand_ins((args, kwargs), texts)
    if not texts:
        return result
    exact = None
    if len(texts) <= MAX_STAND_INS:
        with contextlib.suppress(Exception):  # the function may refuse what is not the text itself
            exact = concat(_texts_again(function(*marked_args, **marked_kwargs), texts))
    return (
        exact if exact == result else whole(result, {source for text in texts for source in text.sources()})
    )


def _with_stand_ins(value: Any, texts: list[Tracked]) -> Any:
    """`value` with one character in the place of each tracked text in it, which goes to `texts`."""
    if isinstance(value, Tracked):
        texts.append(value)
        return chr(STAND_INS + len(texts) - 1)
    if isinstance(value, (list, tuple)):
        return type(value)(_with_stand_ins(entry, texts) for entry in value)
    if isinstance(value, dict):
        return {_with_stand_ins(key, texts): _with_stand_ins(entry, texts) for key, entry in value.items()}
    return value


def _texts_again(text: str, texts: list[Tracked]) -> Iterator[str]:
    last = chr(STAND_INS + len(texts) - 1)
    for number, piece in enumerate(re.split(f"([{chr(STAND_INS)}-{last}])", text)):
        yield texts[ord(piece) - STAND_INS] if number % 2 else piece
