"""Scores documents of files or of standard input with a trained classifier."""

import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from megalm import atomic
from megalm.corpus.classify.model import SCORE_DECIMALS, Classifier
from megalm.corpus.words import Split
from megalm.errors import UserError
from megalm.tokenizer.documents import SampleBy, check_sample_by, expand_inputs, read_documents

STANDARD_INPUT = "-"


class Scored(NamedTuple):
    """A document as it was read, what it is called here, and the probability of each label."""

    record: dict[str, Any]
    id: str
    scores: dict[str, float]


def score_documents(
    classifier: Classifier,
    inputs: Sequence[str],
    text_key: str = "text",
    sample_by: SampleBy = "document",
) -> Iterator[Scored]:
    """Yield the documents of JSONL and text files (`-`: standard input) with the probability of each label."""
    check_sample_by(sample_by)
    for id, record in _records(inputs, text_key, sample_by):
        found = classifier.probabilities(Split(record[text_key]).tokens).tolist()
        scores = {
            name: round(value, SCORE_DECIMALS) for name, value in zip(classifier.labels, found, strict=True)
        }
        yield Scored(record, str(record.get("id") or id), scores)


def called(classifier: Classifier, scores: dict[str, float]) -> str:
    """The label that the scores give: of two the one looked for where it reaches its threshold, else the most probable."""
    labels = classifier.labels
    if len(labels) > 2:
        return max(labels, key=lambda label: scores[label])
    return labels[scores[labels[1]] >= classifier.description.thresholds[labels[1]]]


def write_scored(documents: Iterator[Scored], output: Path, label: str, key: str) -> Iterator[Scored]:
    """Pass documents on and write them as JSON lines, with the score of `label` under `key` of the metadata, if they have any."""
    with atomic.open_atomic(output) as file:
        for document in documents:
            metadata = document.record.get("metadata")
            added = {key: document.scores[label]}
            record = document.record | (
                {"metadata": metadata | added} if isinstance(metadata, dict) else added
            )
            file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
            yield document


def _records(
    inputs: Sequence[str], text_key: str, sample_by: SampleBy
) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in inputs:
        if name == STANDARD_INPUT:
            yield from _standard_input(text_key)
            continue
        for path in expand_inputs([name]):
            for number, document in enumerate(read_documents(path, text_key, sample_by)):
                yield f"{path.name}:{number}", document.record or {text_key: document.text}


def _standard_input(text_key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """JSON lines, or else one text."""
    lines = sys.stdin.buffer
    first = lines.readline()
    if not first.lstrip().startswith(b"{"):
        yield STANDARD_INPUT, {text_key: (first + lines.read()).decode("utf-8", "replace")}
        return
    for number, line in enumerate(chain([first], lines), 1):
        if not line.strip():
            continue
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise UserError(
                f"standard input line {number} is not JSON ({error}); write one object a line"
            ) from None
        if not isinstance(record, dict) or not isinstance(record.get(text_key), str):
            raise UserError(
                f"standard input line {number} has no text under '{text_key}'; name the key that holds it"
            )
        yield f"{STANDARD_INPUT}:{number}", record
