"""Decoding token by token: what is shown while a model writes."""

import codecs
import copy
from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
LONGEST_CHARACTER = 4
"""Bytes of the longest character in UTF-8."""


class ByteStream:
    """The text of tokens that are bytes in a row: a character is shown when its last byte is there."""

    def __init__(self, bytes_of: Callable[[int], bytes], strips_space: bool) -> None:
        """strips_space: leave out one space at the begin of the text."""
        self._bytes_of = bytes_of
        self._strips_space = strips_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        data = self._bytes_of(token_id)
        if self._strips_space and data:
            data = data.removeprefix(b" ")
            self._strips_space = False
        return self._decoder.decode(data)

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)

    def copy(self) -> "ByteStream":
        other = copy.copy(self)
        other._decoder = copy.copy(self._decoder)
        return other


class ContextStream:
    """The text of tokens that are spelled by the one before them, as the words of WordPiece are."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._context: list[int] = []
        self._open: list[int] = []

    def push(self, token_id: int) -> str:
        self._open.append(token_id)
        piece = self._piece()
        if piece.endswith(REPLACEMENT) and len(self._open) < LONGEST_CHARACTER:
            return ""
        self._context, self._open = self._open[-1:], []
        return piece

    def finish(self) -> str:
        piece = self._piece()
        self._context, self._open = [], []
        return piece

    def copy(self) -> "ContextStream":
        other = copy.copy(self)
        other._open = list(self._open)
        return other

    def _piece(self) -> str:
        settled = self._decode(self._context)
        return self._decode(self._context + self._open)[len(settled) :]
