"""The bytes that the tokens of a `tokenizer.json` stand for, read from its decoder."""

from collections.abc import Callable
from typing import Any

from megalm.tokenizer.pieces import Pieces


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
