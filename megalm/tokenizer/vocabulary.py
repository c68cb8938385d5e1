"""What a tokenizer's vocabulary holds: kinds of pieces, their lengths, the longest ones."""

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megalm.tokenizer.base import Tokenizer

COMMON_UNKNOWN_TOKENS = ("<unk>", "[UNK]", "<|unk|>", "<UNK>")


@dataclass(frozen=True)
class Vocabulary:
    """The pieces of a tokenizer: bytes by id, and which ids [V] are special, unknown, or no whole character.

    byte_piece_V: single bytes of a byte fallback, and pieces of byte-level models that are parts of characters.
    """

    data_V: list[bytes]
    special_V: NDArray[np.bool_]
    unknown_V: NDArray[np.bool_]
    byte_piece_V: NDArray[np.bool_]

    @property
    def piece_ids(self) -> NDArray[np.int64]:
        """Ids of what a text can give: neither special nor a hole in the vocabulary."""
        there = np.array([bool(data) for data in self.data_V], bool)
        return np.flatnonzero(there & ~self.special_V)

    def longest(self, count: int, among: Iterable[int] | None = None) -> list[int]:
        """The `count` ids of the longest pieces in bytes, the longest first, equal ones by id."""
        ids = self.piece_ids if among is None else among
        return sorted((int(i) for i in ids), key=lambda i: (-len(self.data_V[i]), i))[:count]

    def lengths(self) -> dict[int, int]:
        """How many pieces there are of each length in bytes."""
        return dict(sorted(Counter(len(self.data_V[i]) for i in self.piece_ids).items()))


def read_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """The pieces of `tokenizer`."""
    size = tokenizer.vocab_size
    data = [tokenizer.token_bytes(i) for i in range(size)]
    unknown = unknown_id(tokenizer)
    fallback = {tokenizer.token_id(f"<0x{byte:02X}>") for byte in range(256)}
    if None in fallback:  # a vocabulary that merely spells a few of them
        fallback = set()
    special = np.zeros(size, bool)
    special[list(tokenizer.special_tokens.values())] = True
    numbers = np.arange(size)
    parts = np.array([i in fallback or not is_text(piece) for i, piece in enumerate(data)], bool)
    return Vocabulary(data, special, numbers == (-1 if unknown is None else unknown), parts & ~special)


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """Id that stands for what the tokenizer cannot spell; None where it has none."""
    model = _model(tokenizer)
    if isinstance(model.get("unk_id"), int):
        return model["unk_id"]
    names = [model["unk_token"]] if model.get("unk_token") else COMMON_UNKNOWN_TOKENS if not model else ()
    found = (tokenizer.token_id(name) for name in names)
    return next((i for i in found if i is not None), None)


def kind(tokenizer: Tokenizer) -> str:
    """The kind of model in words, such as `byte-level BPE`."""
    model = _model(tokenizer)
    if not model:
        return type(tokenizer).__name__.removesuffix("Tokenizer")
    name = model.get("type") or "BPE"
    if name == "BPE" and '"ByteLevel"' in tokenizer.content:  # type: ignore[attr-defined]
        return "byte-level BPE"
    return f"{name} with byte fallback" if model.get("byte_fallback") else name


def describe(tokenizer: Tokenizer, examples: int = 10) -> dict[str, Any]:
    """Size, kind, end token, special tokens, pieces by length in bytes and the longest `examples` pieces."""
    vocabulary = read_vocabulary(tokenizer)
    unknown = np.flatnonzero(vocabulary.unknown_V)
    return {
        "vocab_size": tokenizer.vocab_size,
        "eod_id": tokenizer.eod_id,
        "hash": tokenizer.hash,
        "kind": kind(tokenizer),
        "lossless": tokenizer.lossless,
        "special_tokens": tokenizer.special_tokens,
        "unknown_id": int(unknown[0]) if len(unknown) else None,
        "pieces": len(vocabulary.piece_ids),
        "byte_pieces": int(vocabulary.byte_piece_V.sum()),
        "pieces_by_length": vocabulary.lengths(),
        "longest_pieces": [named_piece(vocabulary, i) for i in vocabulary.longest(examples)],
    }


def named_piece(vocabulary: Vocabulary, token_id: int) -> dict[str, Any]:
    """A piece as id, length in bytes and readable text."""
    data = vocabulary.data_V[token_id]
    return {"id": int(token_id), "bytes": len(data), "text": readable(data)}


def readable(data: bytes) -> str:
    """`data` on one line: white space and what cannot be shown as escapes, spaces as `·`, single bytes as `\\xE6`."""
    text = data.decode("utf-8", "surrogateescape")
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02X}"
    if character == " ":
        return "·"
    if character in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[character]
    return f"\\u{{{ord(character):04X}}}" if is_hidden(character) else character


def is_hidden(character: str) -> bool:
    """Whether `character` would not be seen, or would change how its neighbours are shown."""
    return (
        unicodedata.category(character) in ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs")
        and character != " "
    )


def is_text(data: bytes) -> bool:
    """Whether `data` is whole characters of UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _model(tokenizer: Tokenizer) -> dict[str, Any]:
    """The model of a `tokenizer.json`; {} for other kinds."""
    content = getattr(tokenizer, "content", None)
    return json.loads(content)["model"] if content else {}
