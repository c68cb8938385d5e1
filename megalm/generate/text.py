"""The text of a growing sequence: whole characters only, cut before the first stop string."""

import copy
from collections.abc import Sequence

from megalm.tokenizer import Tokenizer


class GrowingText:
    """Decodes one generated token at a time and watches for stop strings.

    `push` and `finish` return what is sure to stay, so that a terminal never shows part of a character or of a stop
    string; joined, their pieces are `text`. After `stopped` is true nothing is added.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str]) -> None:
        """`prompt`: the tokens before; they are decoded too, because some tokenizers spell a token by the one before."""
        self._stream = tokenizer.stream()
        for token in prompt:
            self._stream.push(token)
        self._stop = stop
        self._decoded = ""
        self._shown = 0
        self.stopped = False
        self.cut = ""
        """The stop string that it was cut before."""

    @property
    def text(self) -> str:
        """What is settled so far."""
        return self._decoded[: self._shown]

    def push(self, token: int) -> str:
        """Take one token and return the new text that is settled, often empty."""
        self._add(self._stream.push(token))
        return self._show(len(self._decoded) - (0 if self.stopped else self._open_stop()))

    def finish(self) -> str:
        """Return what was held back: no more tokens come."""
        if not self.stopped:
            self._add(self._stream.finish())
        return self._show(len(self._decoded))

    def copy(self) -> "GrowingText":
        """The same text, which goes its own way from here."""
        other = copy.copy(self)
        other._stream = self._stream.copy()
        return other

    def _add(self, piece: str) -> None:
        start = max(0, len(self._decoded) - max(map(len, self._stop), default=0))
        self._decoded += piece
        found = [(at, stop) for stop in self._stop if (at := self._decoded.find(stop, start)) >= 0]
        if found:
            at, self.cut = min(found)
            self._decoded = self._decoded[:at]
            self.stopped = True

    def _open_stop(self) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        longest = 0
        for stop in self._stop:
            end = self._decoded[len(self._decoded) - min(len(stop) - 1, len(self._decoded)) :]
            at = end.find(stop[0])
            while at >= 0 and len(end) - at > longest:
                if stop.startswith(end[at:]):
                    longest = len(end) - at
                at = end.find(stop[0], at + 1)
        return longest

    def _show(self, end: int) -> str:
        piece = self._decoded[self._shown : end]
        self._shown = end
        return piece


def add_token(
    text: GrowingText | None, token: int, eod_id: int | None, is_last: bool
) -> tuple[str, str | None]:
    """Add a token to `text`; what is settled by it, and why the text ends here, None where it goes on.

    eod_id: the token that ends a text. is_last: there is room for no other. text: None without a tokenizer.
    """
    piece, reason = "", "length" if is_last else None
    if token == eod_id:
        reason = "stop"
    elif text is not None:
        piece = text.push(token)
    if text is not None and (reason or text.stopped):
        piece += text.finish()
        if text.stopped:  # the last held-back bytes may complete a stop string
            reason = "stop"
    return piece, reason
