"""The class of each document: `PREFIX.labels`, a file beside the .bin/.idx of data for classification.

Eight magic bytes, the number of documents (uint64), then the number of each document's label (int32), little-endian. The
sidecar has the labels' names in the order of their numbers (`labels`) and how many documents each has (`label_counts`).
"""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megalm.dataset.indexed import IndexedDataset
from megalm.dataset.sidecar import read_sidecar
from megalm.errors import UserError

MAGIC = b"MEGALABL"
HEADER = struct.Struct("<8sQ")


def labels_path(prefix: str | Path) -> Path:
    """Return the file of the labels of `prefix`."""
    return Path(f"{prefix}.labels")


def labels_as_bytes(numbers: Sequence[int]) -> bytes:
    """Return the content of the file for these documents' labels."""
    return HEADER.pack(MAGIC, len(numbers)) + np.array(numbers, "<i4").tobytes()


def read_labels(dataset: IndexedDataset, names: Sequence[str]) -> NDArray[np.int64]:
    """Return the class of each document of `dataset`, counted by `names`.

    UserError where it has no labels or damaged ones, and for labels that are not among `names`.
    """
    known, counts = label_counts(dataset.prefix)
    if strange := [name for name in known if counts[name] and name not in names]:
        found = ", ".join(f"{name!r} ({counts[name]} documents)" for name in strange)
        raise UserError(
            f"dataset {dataset.prefix} has labels that the classes {', '.join(names)} lack: {found}; "
            "name them in classify.labels, or build the dataset without them (--labels)"
        )
    path = labels_path(dataset.prefix)
    data = path.read_bytes()
    size = HEADER.size + 4 * dataset.num_documents
    if len(data) != size or HEADER.unpack_from(data) != (MAGIC, dataset.num_documents):
        raise UserError(
            f"{path} is not the labels of {dataset.num_documents} documents; build the dataset again"
        )
    numbers = np.frombuffer(data, "<i4", offset=HEADER.size)
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < len(known)):
        raise UserError(
            f"{path} has labels outside the {len(known)} that the sidecar names; build the dataset again"
        )
    place = np.array([names.index(name) if name in names else -1 for name in known], np.int64)
    return place[numbers]


def label_counts(prefix: str | Path) -> tuple[list[str], dict[str, int]]:
    """Return the names of a dataset's labels and how many documents each has; UserError where it has none."""
    sidecar = read_sidecar(prefix) or {}
    if not isinstance(sidecar.get("labels"), list) or not labels_path(prefix).exists():
        raise UserError(f"dataset {prefix} has no labels: make it with `megalm dataset build-labelled`")
    return sidecar["labels"], sidecar["label_counts"]
