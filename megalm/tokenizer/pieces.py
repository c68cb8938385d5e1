"""What bytes each token stands for in a text: exact decoding, and encoding of bytes that are no text."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from megalm.errors import UserError

SPACE_MARK = "▁"
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


def pieces_of_json(content: dict[str, Any], vocabulary: dict[str, int], added: dict[int, str]) -> Pieces:
    """The pieces of a `tokenizer.json`: `content` parsed, `vocabulary` of its model, `added` tokens by id."""
    decoders = _steps(content.get("decoder"), "decoders")
    kinds = {step["type"] for step in decoders}
    splits = {step["type"] for step in _steps(content.get("pre_tokenizer"), "pretokenizers")}
    size = 1 + max([*vocabulary.values(), *added])
    table = [b""] * size
    byte_ids: list[int | None]
    if "ByteLevel" in kinds | splits:
        for token, i in vocabulary.items():
            table[i] = _bytes_of_alphabet(token)
        byte_ids = [vocabulary.get(character) for character in BYTE_CHARACTERS]
        joins, strips = True, False
    else:
        fallback = "ByteFallback" in kinds or bool(content["model"].get("byte_fallback"))
        spell = _speller(content, decoders)
        for token, i in vocabulary.items():
            table[i] = spell(token)
        byte_ids = [vocabulary.get(f"<0x{byte:02X}>") if fallback else None for byte in range(256)]
        for byte, number in enumerate(byte_ids):
            if number is not None:
                table[number] = bytes([byte])
        joins = bool(kinds) and kinds <= {"Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}
        strips = any(
            (step["type"] == "Strip" and step.get("start") == 1)
            or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
            for step in decoders
        )
    for i, token in added.items():
        table[i] = token.encode()
    complete = [number for number in byte_ids if number is not None and number not in added]
    return Pieces(table, joins, strips, complete if len(complete) == 256 else None)


def byte_characters() -> list[str]:
    """The printable character that GPT-2 writes for each byte (Radford et al. 2019, `bytes_to_unicode`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


BYTE_CHARACTERS = byte_characters()
_BYTE_OF = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}


def _bytes_of_alphabet(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF[character] for character in token])
    except KeyError:
        return token.encode()


def _speller(content: dict[str, Any], decoders: list[dict[str, Any]]) -> Callable[[str], bytes]:
    """How a token of a model that is not byte-level reads inside a text."""
    model = content["model"]
    prefix = model.get("continuing_subword_prefix") or ""
    suffix = model.get("end_of_word_suffix") or ""
    marks = {step.get("replacement") for step in decoders if step["type"] == "Metaspace"}
    marks |= {
        step["pattern"].get("String")
        for step in decoders
        if step["type"] == "Replace" and step["content"] == " "
    }
    mark = next((mark for mark in marks if mark), None)

    def spell(token: str) -> bytes:
        if prefix:
            token = token.removeprefix(prefix)
        if suffix and token.endswith(suffix):
            token = token.removesuffix(suffix) + " "
        return (token.replace(mark, " ") if mark else token).encode()

    return spell


def _steps(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The steps of a part of a `tokenizer.json`, sequences laid flat."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for inner in part[key] for step in _steps(inner, key)]
    return [part]


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
