"""What bytes each token stands for in a text: exact decoding, and encoding of bytes that are no text."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from megalm.errors import UserError
from megalm.tokenizer.base import TextStream
from megalm.tokenizer.streams import ByteStream, ContextStream

SHORTEST_CUT = 16
"""Characters below which a stretch that does not survive encoding is written byte by byte."""


@dataclass(frozen=True)
class Pieces:
    """The bytes of every token.

    of_V: bytes by id, empty where the vocabulary has a hole. joins: whether the text of ids is their bytes, joined.
    strips_space: whether one space at the begin of that text is the tokenizer's own. byte_ids: id of each of the
    256 bytes, None where the vocabulary lacks one.
    """

    of_V: list[bytes]
    joins: bool
    strips_space: bool
    byte_ids: list[int] | None

    @cached_property
    def lossless(self) -> bool:
        """Whether any bytes survive `encode_bytes` and `join`."""
        return self.joins and self.byte_ids is not None

    def join(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of a text of `ids`."""
        data = b"".join([self.of_V[i] for i in ids])
        return data[1:] if self.strips_space and data.startswith(b" ") else data

    def encode_bytes(self, encode: Callable[[str], list[int]], data: bytes) -> list[int]:
        """Return ids of `data`: those of `encode` where that keeps every byte, else single bytes in between.

        Raises UserError where the tokenizer has no tokens for bytes and `data` is no UTF-8.
        """
        if not self.lossless:
            try:
                return encode(data.decode())
            except UnicodeDecodeError as error:
                raise UserError(
                    f"byte {error.start} of the data is not UTF-8, and the tokenizer lacks tokens for single bytes; "
                    "convert the data or use a byte-level tokenizer"
                ) from error
        ids: list[int] = []
        for stretch in _stretches(data):
            ids += (
                self._exact(encode, stretch, first=not ids)
                if isinstance(stretch, str)
                else self._bytes(stretch)
            )
        if self.join(ids) != data:  # what was cut off at the front is a space of the data's own
            ids = self._bytes(b" ") + ids
        return ids

    def _exact(self, encode: Callable[[str], list[int]], text: str, first: bool) -> list[int]:
        """Ids whose bytes are those of `text`; a space in front may be one that `encode` or `join` sees to."""
        data = text.encode()
        ids = encode(text)
        if (self.join(ids) if first else self._raw(ids)) == data:
            return ids
        if text.startswith(" ") and self._raw(ids := encode(text[1:])) == data:
            return ids
        if len(text) < SHORTEST_CUT:
            return self._bytes(data)
        cut = text.rfind(" ", 1, len(text) // 2)
        cut = cut if cut > 0 else len(text) // 2
        return self._exact(encode, text[:cut], first) + self._exact(encode, text[cut:], False)

    def _raw(self, ids: Sequence[int]) -> bytes:
        return b"".join([self.of_V[i] for i in ids])

    def _bytes(self, data: bytes) -> list[int]:
        assert self.byte_ids is not None
        return [self.byte_ids[byte] for byte in data]


class PieceTokenizer(ABC):
    """The part of a tokenizer that follows from the bytes of its tokens."""

    _vocab_size: int

    def _end_documents_with(self, token: str) -> None:
        """Take the token that ends documents; UserError where the tokenizer has none of this spelling."""
        eod_id = self.token_id(token)
        if eod_id is None:
            raise UserError(
                f"the tokenizer has no token '{token}' to end documents with; name one that it has"
            )
        self.eod_token, self._eod_id = token, eod_id

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def eod_id(self) -> int:
        return self._eod_id

    @abstractmethod
    def token_id(self, token: str) -> int | None: ...

    @property
    @abstractmethod
    def _pieces(self) -> Pieces: ...

    @abstractmethod
    def encode(self, text: str) -> list[int]: ...

    @abstractmethod
    def _decode_words(self, ids: list[int]) -> str:
        """The text of ids that are not bytes in a row."""

    @property
    def lossless(self) -> bool:
        return self._pieces.lossless

    def encode_bytes(self, data: bytes) -> list[int]:
        return self._pieces.encode_bytes(self.encode, data)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        ids = self._checked(ids)
        return self._pieces.join(ids) if self._pieces.joins else self._decode_words(ids).encode()

    def decode(self, ids: Sequence[int]) -> str:
        ids = self._checked(ids)
        if self._pieces.joins:
            return self._pieces.join(ids).decode("utf-8", "replace")
        return self._decode_words(ids)

    def token_bytes(self, token_id: int) -> bytes:
        return self._pieces.of_V[self._checked([token_id])[0]]

    def stream(self) -> TextStream:
        if self._pieces.joins:
            return ByteStream(self.token_bytes, self._pieces.strips_space)
        return ContextStream(self.decode)

    def _checked(self, ids: Sequence[int]) -> list[int]:
        ids = [int(i) for i in ids]
        if ids and not (0 <= min(ids) and max(ids) < self.vocab_size):
            wrong = next(i for i in ids if not 0 <= i < self.vocab_size)
            raise UserError(
                f"id {wrong} is outside the vocabulary of {self.vocab_size}; use the tokenizer that made it"
            )
        return ids


def check_text(text: str) -> None:
    """Raise UserError for what Python makes of bytes that are no UTF-8: half of a surrogate pair."""
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text holds bytes that are not UTF-8 (character {error.start}); convert it first"
        ) from error


def _stretches(data: bytes) -> Iterable[str | bytes]:
    """Cut `data` into texts and the bytes between them that are no UTF-8."""
    at = 0
    while at < len(data):
        try:
            yield data[at:].decode()
            return
        except UnicodeDecodeError as error:
            if error.start:
                yield data[at : at + error.start].decode()
            yield data[at + error.start : at + error.end]
            at += error.end
