"""A number for each document: `PREFIX.values`, a file beside the .bin/.idx of preference data.

Eight magic bytes, the number of documents (uint64), then the value of each (float64), little-endian. The sidecar says under
`preferences` what they are: margins of `pairs`, `ratings`, or `verdicts` (1: wanted, 0: unwanted).
"""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megalm.dataset.indexed import IndexedDataset
from megalm.dataset.preference_records import KINDS, Kind
from megalm.dataset.sidecar import read_sidecar
from megalm.errors import UserError

MAGIC = b"MEGAVALU"
HEADER = struct.Struct("<8sQ")


def values_path(prefix: str | Path) -> Path:
    """Return the file of the values of `prefix`."""
    return Path(f"{prefix}.values")


def values_as_bytes(values: Sequence[float]) -> bytes:
    """Return the content of the file for these documents' values."""
    return HEADER.pack(MAGIC, len(values)) + np.array(values, "<f8").tobytes()


def kind_of_preferences(prefix: str | Path) -> Kind:
    """Return what the dataset at `prefix` holds; UserError where it holds no preferences."""
    kind = (read_sidecar(prefix) or {}).get("preferences")
    if kind not in KINDS or not values_path(prefix).exists():
        raise UserError(
            f"dataset {prefix} holds no preferences: make it with `megalm dataset build-preferences`"
        )
    return kind


def read_values(dataset: IndexedDataset) -> NDArray[np.float64]:
    """Return the value of each document of `dataset`. UserError where they are damaged."""
    path = values_path(dataset.prefix)
    data = path.read_bytes()
    size = HEADER.size + 8 * dataset.num_documents
    if len(data) != size or HEADER.unpack_from(data) != (MAGIC, dataset.num_documents):
        raise UserError(
            f"{path} is not the values of {dataset.num_documents} documents; build the dataset again"
        )
    values = np.frombuffer(data, "<f8", offset=HEADER.size)
    if not np.isfinite(values).all():
        raise UserError(f"{path} has values that are not finite; build the dataset again")
    return values


def refuse_preferences(dataset: IndexedDataset, task: str) -> None:
    """UserError for preference data, in which a task that reads texts would learn the rejected ones, too."""
    if values_path(dataset.prefix).exists():
        raise UserError(
            f"{dataset.prefix} holds preferences, which task `{task}` would take for texts: build the answers that are to be "
            "learned with `megalm dataset build --chat`, or use task `reward` or `dpo`"
        )
