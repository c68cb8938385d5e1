"""Reads documents with a label for the training of classifiers, and parts them by a hash of their text."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megalm.corpus.classify.features import plain_text
from megalm.corpus.words import Split
from megalm.errors import UserError
from megalm.tokenizer.documents import expand_inputs, read_documents, where


class Labelled(NamedTuple):
    """A document for training: what a classifier sees of its text, and its label."""

    text: str
    label: str

    def chance(self, purpose: str) -> float:
        """A number in [0, 1) that depends on the text and `purpose` alone, so that copies are never parted."""
        data = self.text.encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(data, digest_size=8, key=purpose.encode())
        return int.from_bytes(digest.digest(), "little") / 2**64


def read_labelled(
    inputs: Sequence[str | Path], text_key: str, label_key: str, advance: Callable[[int], Any]
) -> Iterator[Labelled]:
    """Yield the documents of JSONL files; `advance` is told the size of each file that is read.

    label_key: the key of the label, nested ones with dots; strings, numbers and truth values are labels. Raises UserError
    for a document without text or label.
    """
    for path in expand_inputs(inputs):
        for document in read_documents(path, text_key):
            if document.record is None:
                raise UserError(f"input {path} has no labels; give JSON lines with a text and a label")
            label = label_of(document.record, label_key)
            if label is None:
                raise UserError(
                    f"{where(path, document.offset)} has no label under '{label_key}' (found keys "
                    f"{', '.join(document.record)}); name the key that holds it, with dots for nested ones"
                )
            yield Labelled(plain_text(Split(document.text).tokens), label)
        advance(path.stat().st_size)


def label_of(record: dict[str, Any], key: str) -> str | None:
    """The label under `key` as text (JSON's for numbers and truth values), or None."""
    value: Any = record
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, int | float) else None
