"""Turns a batch of documents into ids: texts, prompts that do not count, and special tokens between them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megalm.dataset.fim import draws, rearrange
from megalm.dataset.indexed import token_dtype
from megalm.dataset.recipe import Recipe
from megalm.dataset.runs import ROW, Documents
from megalm.errors import UserError
from megalm.tokenizer import Tokenizer
from megalm.tokenizer.documents import Document, keys_of, where

NOTHING = np.empty(0, np.uint8)


def tokenized(
    batch: Sequence[Document], path: Path, file_number: int, recipe: Recipe, tokenizer: Tokenizer
) -> Documents:
    """Return the ids of the documents with what else the recipe wants of them; their keys are left at 0."""
    parts, counted = _parts(batch, path, file_number, recipe)
    if parts is None:
        ids, lengths_D = tokenizer.encode_ragged([document.text for document in batch])
        counts = NOTHING
    else:
        ids, lengths_D, counts = _encode_parts(parts, counted, tokenizer)
    tokens = ids.astype(token_dtype(recipe.vocab_size))
    if recipe.append_eod:
        ends = np.cumsum(lengths_D)
        tokens = np.insert(tokens, ends, tokens.dtype.type(recipe.eod_id))
        counts = np.insert(counts, ends, 1) if len(counts) else counts
        lengths_D = lengths_D + 1
    names = _names(batch, path, recipe.extras.id_key)
    rows = np.zeros(len(batch), ROW)
    rows["offset"] = [document.offset for document in batch]
    rows["file"] = file_number
    rows["tokens"] = lengths_D
    rows["name"] = [len(name) for name in names]
    return Documents(rows, tokens, counts, np.frombuffer(b"".join(names), np.uint8))


def prompt_of(document: Document, path: Path, key: str) -> str:
    """Return the text under `key`, nothing where there is none; UserError where it is no text."""
    prompt = (document.record or {}).get(key)
    if prompt is not None and not isinstance(prompt, str):
        raise UserError(
            f"{where(path, document.offset)} has a {type(prompt).__name__} under '{key}'; write the prompt as a text"
        )
    return prompt or ""


def _parts(
    batch: Sequence[Document], path: Path, file_number: int, recipe: Recipe
) -> tuple[list[list[str | int]] | None, bool]:
    """What each document is made of, texts and ids, None where it is its text alone; whether first parts do not count."""
    extras = recipe.extras
    if extras.prompt_key is not None:
        return [[prompt_of(document, path, extras.prompt_key), document.text] for document in batch], True
    if not extras.fim_rate:
        return None, False
    assert recipe.fim_tokens is not None
    drawn = draws(recipe.seed, file_number, [document.offset for document in batch]).tolist()
    return [
        rearrange(document.text, draw, extras.fim_rate, extras.fim_spm_rate, recipe.fim_tokens)
        for document, draw in zip(batch, drawn, strict=True)
    ], False


def _encode_parts(
    parts: list[list[str | int]], prompted: bool, tokenizer: Tokenizer
) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.uint8]]:
    """Return the ids of all documents, how many each has, and, of prompted ones, which tokens count."""
    texts = [part for document in parts for part in document if isinstance(part, str)]
    ids, lengths_P = tokenizer.encode_ragged(texts)
    counts = np.repeat(np.arange(len(texts)) % 2, lengths_P).astype(np.uint8) if prompted else NOTHING
    begins = [0, *np.cumsum(lengths_P).tolist()]
    places, specials, borders, text = [], [], [0], 0
    for document in parts:
        for part in document:
            if isinstance(part, str):
                text += 1
            else:
                places.append(begins[text])
                specials.append(part)
        borders.append(begins[text] + len(specials))
    return np.insert(ids, places, np.array(specials, np.uint32)), np.diff(borders), counts


def _names(batch: Sequence[Document], path: Path, key: str | None) -> list[bytes]:
    if key is None:
        return [b""] * len(batch)
    names = []
    for document in batch:
        name = (document.record or {}).get(key)
        if not isinstance(name, str | int):
            found = keys_of(document.record) if document.record else "no JSON object"
            raise UserError(
                f"{where(path, document.offset)} has no name under '{key}' (found {found}): name the key that holds it"
            )
        names.append(str(name).encode())
    return names
