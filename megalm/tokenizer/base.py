"""What every tokenizer offers."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Tokenizer(Protocol):
    """Maps text to token ids and back.

    Text is only ever text: a document that spells `<|endoftext|>` gives ordinary tokens, and special tokens
    come into a sequence by their id alone. Nothing is added at either end.
    """

    @property
    def vocab_size(self) -> int:
        """Number of ids: every id is below it."""

    @property
    def eod_id(self) -> int:
        """Id that ends a document."""

    @property
    def hash(self) -> str:
        """Sha256 (hex) over what determines the ids; two tokenizers with equal hashes give equal ids."""

    @property
    def special_tokens(self) -> dict[str, int]:
        """Ids of the special tokens (never what a text gives), by their spelling."""

    @property
    def lossless(self) -> bool:
        """Whether any bytes, text or not, come back from `decode_bytes(encode_bytes(data))`."""

    def token_id(self, token: str) -> int | None:
        """Return the id of the token that is spelled `token`, special ones included, None where there is none."""

    def ids_that_start_with(self, prefix: str) -> list[int]:
        """Return the ids of the tokens whose spelling is longer than `prefix` and starts with it."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each of `texts`; faster than one by one."""

    def encode_ragged(self, texts: list[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Return the ids of all `texts` joined [T] and how many each has [len(texts)]; the fastest way to encode."""

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of `text` and the characters [start, stop) of it that each covers.

        Tokens that share a character each cover it whole; what the tokenizer adds of its own covers nothing.
        """

    def encode_bytes(self, data: bytes) -> list[int]:
        """Return ids of `data`, which need not be UTF-8 where the tokenizer is `lossless` (UserError otherwise).

        They are those of `encode` where these give back every byte.
        """

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Return the bytes of a text of `ids`, special tokens spelled out in UTF-8."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return what the token stands for inside a text, a special one its spelling; empty for an unused id."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens spelled out, bytes that are no UTF-8 as U+FFFD."""

    def stream(self) -> "TextStream":
        """Return a decoder that takes one id at a time."""


class TextStream(Protocol):
    """Decodes one id at a time and never splits a character: what a terminal or a web page is fed with.

    The pieces that `push` and `finish` return, joined, are `tokenizer.decode` of all the ids. A piece takes the same
    time however many came before.
    """

    def push(self, token_id: int) -> str:
        """Return the text that `token_id` completes; empty while a character is still open."""

    def finish(self) -> str:
        """Return what is still held back: the bytes of an open character as U+FFFD, or nothing."""

    def copy(self) -> "TextStream":
        """Return a decoder that has read the same ids, and goes its own way from here."""
