"""Trains a classifier on labelled documents, chooses its thresholds, and measures it on documents it has not seen."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

import megalm
from megalm.config.section import Section
from megalm.corpus.classify.choose import TrainingData, choose_thresholds, cross_validate
from megalm.corpus.classify.features import FeatureSettings, count_ngrams
from megalm.corpus.classify.labelled import read_labelled
from megalm.corpus.classify.matrix import Rows
from megalm.corpus.classify.metrics import measure
from megalm.corpus.classify.model import Classifier, Description
from megalm.corpus.classify.solver import Fit, probabilities
from megalm.errors import UserError
from megalm.tasks import progress_bar
from megalm.tokenizer.documents import expand_inputs

_MOST_LABELS = 100


class TrainSettings(Section):
    """How a classifier is trained."""

    text_key: str = Field("text", description="Key of the text.")
    label_key: str = Field("label", description="Key of the label, nested ones with dots.")
    positive: list[str] = Field([], description="Labels that are looked for, against all others.")
    held_out: float = Field(0.2, ge=0, lt=1, description="Share of the texts to measure on; 0 for none.")
    seed: int = Field(0, ge=0, lt=1 << 63, description="Another seed holds other texts out.")
    balance: bool = Field(False, description="Let every label weigh the same, however many documents it has.")
    c: list[Annotated[float, Field(gt=0)]] = Field(
        [10.0],
        min_length=1,
        description="Inverse strength of the penalty on weights; of several the best is taken.",
    )
    folds: int = Field(5, ge=2, le=100, description="Parts that the training texts are cut into to choose.")
    threshold: float | None = Field(None, ge=0, le=1, description="A fixed threshold.")
    precision: float | None = Field(None, gt=0, le=1, description="The lowest threshold with this precision.")
    share: float | None = Field(None, gt=0, lt=1, description="The threshold that this share reaches.")
    min_documents: int = Field(2, ge=1, description="Leave out n-grams that fewer documents have.")
    features: FeatureSettings = Field(FeatureSettings(), description="The n-grams.")


class _Part(NamedTuple):
    """Documents with their labels, and for each a number from a hash of its text that says which fold it is in."""

    rows: Rows
    labels: list[str]
    chances: list[float]


def train_classifier(
    inputs: Sequence[str | Path], output: str | Path, settings: TrainSettings, progress: bool = False
) -> Description:
    """Train on JSONL files of labelled documents, save the classifier as the file `output`, and say how good it is.

    The texts are parted by a hash, so that copies are together: a share is held out for the measures. On the rest,
    thresholds and the best `c` are chosen by cross-validation (each document scored by a model that has not seen it), then
    the classifier is trained on all of it. The same documents in the same order give the same bytes.

    Returns what is saved beside the weights. Raises UserError for inputs that nothing can be learnt from.
    """
    if sum(rule is not None for rule in (settings.threshold, settings.precision, settings.share)) > 1:
        raise UserError("only one of threshold, precision and share can set the threshold; give one")
    files = expand_inputs(inputs)
    with progress_bar("read", sum(path.stat().st_size for path in files), progress) as advance:
        training, held, facts = _read(files, Path(output).absolute().parent, settings, advance)
    names = ["other", _joined(settings.positive)] if settings.positive else sorted(facts["documents"])
    folds_R = np.floor(np.array(training.chances) * settings.folds).astype(np.int64)
    _check_labels(names, training, held, folds_R)
    rarity = training.rows.rarity(1 << settings.features.bucket_bits, settings.min_documents)
    columns = np.flatnonzero(rarity)
    if not len(columns):
        raise UserError(f"no n-gram is in {settings.min_documents} documents; give more of them")
    data = TrainingData(training.rows.matrix(rarity), _numbers(training.labels, names), names)
    with progress_bar("train", len(settings.c) * settings.folds + 1, progress) as advance:
        c, scores_RL = cross_validate(data, folds_R, settings.c, settings.balance, advance)
        fit = data.fit(c, settings.balance)
        advance(1)
    thresholds = choose_thresholds(data, scores_RL, settings.threshold, settings.precision, settings.share)
    measures = {"cross_validation": measure(data.truth_R, scores_RL, names, thresholds[names[-1]])}
    if held.labels:
        held_RL = probabilities(fit.logits(held.rows.matrix(rarity)))
        measures["held_out"] = measure(_numbers(held.labels, names), held_RL, names, thresholds[names[-1]])
    facts |= {"c": c, "iterations": fit.iterations, "converged": fit.converged, **measures}
    facts |= {"megalm": megalm.__version__, "settings": settings.model_dump(exclude={"features"})}
    description = Description(labels=names, thresholds=thresholds, features=settings.features, training=facts)
    _classifier(description, fit, rarity, columns).save(output)
    return description


def _read(
    files: Sequence[Path], folder: Path, settings: TrainSettings, advance: Callable[[int], Any]
) -> tuple[_Part, _Part, dict[str, Any]]:
    """The documents for training and those held out, and how many there are."""
    parts = _Part(Rows(folder), [], []), _Part(Rows(folder), [], [])
    digest, empty = hashlib.sha256(), 0
    found, texts = Counter[str](), set()
    for document in read_labelled(files, settings.text_key, settings.label_key, advance):
        ngrams = count_ngrams(document.text, settings.features)
        if not len(ngrams.buckets):
            empty += 1
            continue
        digest.update(f"{document.label}\n{document.text}\n".encode("utf-8", "surrogatepass"))
        found[document.label] += 1
        part = parts[document.chance(f"held out {settings.seed}") < settings.held_out]
        part.rows.add(ngrams)
        part.labels.append(_grouped(document.label, settings.positive))
        part.chances.append(document.chance(f"fold {settings.seed}"))
        texts.add(part.chances[-1])
    if missing := sorted(set(settings.positive) - set(found)):
        raise UserError(f"no document has the label '{missing[0]}' (found: {', '.join(sorted(found)[:20])})")
    documents = dict(sorted(Counter(parts[0].labels + parts[1].labels).items()))
    counts = {"documents": documents, "copies": found.total() - len(texts), "empty": empty}
    return *parts, {**counts, "data_sha256": digest.hexdigest()}


def _grouped(label: str, positive: Sequence[str]) -> str:
    """The label itself, or where some are looked for, whether it is one of them."""
    if not positive:
        return label
    return _joined(positive) if label in positive else "other"


def _joined(positive: Sequence[str]) -> str:
    return "+".join(sorted(positive))


def _check_labels(names: Sequence[str], training: _Part, held: _Part, folds_R: NDArray[np.int64]) -> None:
    """Raise UserError unless each label can be learnt in every fold and measured on what is held out."""
    total = len(training.labels) + len(held.labels)
    if len(names) < 2 or not (set(names) <= {*training.labels, *held.labels}):
        found = ", ".join(sorted({*training.labels, *held.labels})) or "none"
        raise UserError(
            f"two labels at least are needed, and {total} documents have {found}; add documents of another"
        )
    if len(names) > _MOST_LABELS:
        raise UserError(f"{len(names)} labels are too many, {_MOST_LABELS} are possible; is it another key?")
    truth = np.array(training.labels)
    for name in names:
        if len(np.unique(folds_R[truth == name])) < 2:
            raise UserError(
                f"only {training.labels.count(name)} texts for training have the label '{name}'; give more"
            )
        if held.labels and name not in held.labels:
            raise UserError(
                f"none of the {len(held.labels)} held-out documents has the label '{name}'; give more documents, or "
                "another held-out share or seed"
            )


def _numbers(labels: Sequence[str], names: Sequence[str]) -> NDArray[np.int64]:
    number = {name: place for place, name in enumerate(names)}
    return np.fromiter(map(number.__getitem__, labels), np.int64, len(labels))


def _classifier(
    description: Description, fit: Fit, rarity: NDArray[np.float32], columns: NDArray[np.int64]
) -> Classifier:
    table_BL = np.zeros((len(rarity), 1 + len(fit.weights_LF)), np.float32)
    table_BL[:, 0] = rarity
    table_BL[columns, 1:] = fit.weights_LF.T
    return Classifier(description, table_BL, fit.bias_L.astype(np.float32))
