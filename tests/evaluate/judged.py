"""Files that tasks of bias and safety need: a classifier of toxicity, tokens of documents."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megalm.dataset import IndexedDatasetWriter

WORDS = {"civil": "kind thanks please friend", "toxic": "vile hate scum filth"}


def write_documents(prefix: Path, documents: Sequence[Sequence[int]]) -> Path:
    """A file of tokens, a document each."""
    with IndexedDatasetWriter(prefix, np.dtype("<i4")) as writer:
        for document in documents:
            writer.add_document(np.array(document))
    return prefix


def toxicity_classifier(folder: Path) -> Path:
    """A classifier that finds texts of the words of `toxic` toxic."""
    from megalm.corpus.classify.train import TrainSettings, train_classifier

    records = [
        {"text": f"{first} of {second}", "label": label}
        for label, words in WORDS.items()
        for first in words.split()
        for second in [*words.split(), "the", "end", "text", "hand", "many"]
    ]
    path = folder / "labelled.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    train_classifier([path], folder / "toxic.safetensors", TrainSettings(held_out=0))
    return folder / "toxic.safetensors"
