"""The text of a growing sequence: whole characters only, cut before the first stop string."""

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

    def _add(self, piece: str) -> None:
        start = max(0, len(self._decoded) - max(map(len, self._stop), default=0))
        self._decoded += piece
        found = [at for stop in self._stop if (at := self._decoded.find(stop, start)) >= 0]
        if found:
            self._decoded = self._decoded[: min(found)]
            self.stopped = True

    def _open_stop(self) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(self._decoded)), 0, -1):
            if any(stop.startswith(self._decoded[-length:]) for stop in self._stop):
                return length
        return 0

    def _show(self, end: int) -> str:
        piece = self._decoded[self._shown : end]
        self._shown = end
        return piece
