"""A trained classifier: one file without code in it, mapped into memory and shared by all workers of a machine."""

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from megalm import atomic
from megalm.config.section import Section
from megalm.corpus.classify.features import FeatureSettings, count_ngrams, plain_text, weigh
from megalm.corpus.classify.solver import probabilities
from megalm.errors import UserError

SCORE_DECIMALS = 6
_METADATA = "megalm.classifier"
_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER = 1 << 20


Measures = dict[str, int | float | dict[str, dict[str, int | float]]]
"""What `megalm.corpus.classify.metrics.measure` says."""


class Training(Section):
    """What a classifier was trained on, how, and how good it was."""

    documents: dict[str, int] = Field(description="How many had each label, held-out ones included.")
    copies: int = Field(description="How many of them had the text of another.")
    empty: int = Field(description="Documents without n-grams, left out.")
    data_sha256: str = Field(description="A hash of all labels and texts in order.")
    c: float = Field(description="Inverse strength of the penalty.")
    iterations: int = Field(description="Steps of the solver.")
    converged: bool = Field(description="Whether it reached its tolerance.")
    cross_validation: Measures = Field(
        description="Measures on the training texts, each scored by a model without it."
    )
    held_out: Measures | None = Field(None, description="Measures on texts that played no part.")
    settings: dict[str, Any] = Field(description="All other settings.")
    megalm: str = Field(description="The version that trained it.")


class Description(Section):
    """What a classifier's file says beside its weights."""

    version: int = Field(1, ge=1, le=1, description="Of the format.")
    labels: list[str] = Field(min_length=2, max_length=1000, description="In the order of the weights.")
    thresholds: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        description="The score from which on a document counts as such, by label."
    )
    features: FeatureSettings = Field(description="The n-grams.")
    training: Training = Field(description="Where it comes from.")

    @model_validator(mode="after")
    def _complete(self) -> "Description":
        if set(self.thresholds) != set(self.labels) or len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must differ, and each must have a threshold")
        return self


class Classifier:
    """Gives documents the probability of each label; a function of a document's tokens alone."""

    def __init__(
        self, description: Description, table_BL: NDArray[np.float32], bias_L: NDArray[np.float32]
    ) -> None:
        """table_BL: for each bucket its rarity, then its weight for each logit; one logit for two labels."""
        self.description = description
        self._table_BL = np.asarray(table_BL)  # without what a mapped array does at every operation
        self._bias_L = bias_L

    @property
    def labels(self) -> list[str]:
        """The labels; of two the second is the one that is looked for."""
        return self.description.labels

    def probabilities(self, tokens: Sequence[str]) -> NDArray[np.float64]:
        """The probability of each label for a document with these tokens (`Split.tokens`); they sum to 1."""
        counts = count_ngrams(plain_text(tokens), self.description.features)
        rows = self._table_BL.take(counts.buckets, 0, mode="clip")  # four times as fast as an index
        weighed = weigh(counts.values, rows[:, 0], counts.border)
        logits = (weighed[:, None] * rows[:, 1:]).sum(0, dtype=np.float64) + self._bias_L
        return probabilities(logits[None])[0]

    def score(self, tokens: Sequence[str], label: str) -> float:
        """The probability of one label, to six decimals."""
        return round(float(self.probabilities(tokens)[self.labels.index(label)]), SCORE_DECIMALS)

    def choose_label(self, label: str | None) -> str:
        """`label`, or of two labels the one looked for; UserError for one that the classifier does not have."""
        known = ", ".join(self.labels)
        if label is None and len(self.labels) > 2:
            raise UserError(f"the classifier has the labels {known}; say which one is meant")
        if label is not None and label not in self.labels:
            raise UserError(f"the classifier has no label '{label}'; choose one of {known}")
        return self.labels[-1] if label is None else label

    def save(self, path: str | Path) -> None:
        """Write the classifier as a safetensors file in one step; the same classifier gives the same bytes."""
        header = {
            "__metadata__": {_METADATA: self.description.model_dump_json()},
            **_tensors(self.description),
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with atomic.open_atomic(path) as file:
            file.write(_LENGTH.pack(len(text)) + text)
            for tensor in (self._table_BL, self._bias_L):
                file.write(np.ascontiguousarray(tensor, "<f4").data)

    @classmethod
    def load(cls, path: str | Path) -> "Classifier":
        """Map a file that `save` wrote; raises UserError for any other, whoever made it."""
        path = Path(path)
        try:
            description, begin = _read_header(path)
        except (ValueError, RecursionError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise UserError(
                f"{path} is no classifier ({' '.join(reason.split())[:200]}); give a file that "
                "`megalm corpus classifier train` wrote"
            ) from None
        tensors = _tensors(description)
        table_BL = np.memmap(path, "<f4", "r", begin, tuple(tensors["table"]["shape"]))
        bias_L = np.fromfile(path, "<f4", offset=begin + table_BL.nbytes)
        if not (np.isfinite(table_BL).all() and np.isfinite(bias_L).all()):
            raise UserError(f"{path} is no classifier (weights that are no numbers); train it anew")
        return cls(description, table_BL, bias_L)


def _tensors(description: Description) -> dict[str, dict[str, Any]]:
    """What the header of the file says of its two tensors."""
    outputs = 1 if len(description.labels) == 2 else len(description.labels)
    shape = [1 << description.features.bucket_bits, 1 + outputs]
    end = 4 * shape[0] * shape[1]
    return {
        "table": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]},
        "bias": {"dtype": "F32", "shape": [outputs], "data_offsets": [end, end + 4 * outputs]},
    }


def _read_header(path: Path) -> tuple[Description, int]:
    """The description and the byte at which the weights begin; ValueError where the file is not as `save` writes it."""
    if not path.is_file():
        raise UserError(f"classifier {path} does not exist; check the path")
    with open(path, "rb") as file:
        start = file.read(_LENGTH.size)
        (length,) = _LENGTH.unpack(start) if len(start) == _LENGTH.size else (0,)
        if not 0 < length <= _LONGEST_HEADER:
            raise ValueError("it does not begin as a safetensors file does")
        header = json.loads(file.read(length))
        size = file.seek(0, 2)
    try:
        description = Description.model_validate_json(header.pop("__metadata__")[_METADATA])
    except (KeyError, TypeError, AttributeError):
        raise ValueError("it holds no classifier of megalm") from None
    tensors = _tensors(description)
    if header != tensors:
        raise ValueError("its tensors are not those of its description")
    begin = _LENGTH.size + length
    if size != begin + tensors["bias"]["data_offsets"][1]:
        raise ValueError("it is cut short or too long")
    return description, begin
