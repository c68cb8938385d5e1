"""F1 of the trainable classifiers on held-out documents of labelled sets, beside scikit-learn and fastText.

`--data` is a folder in which the files of SETS lie; those that are not there are passed over. For each set and seed
the documents are parted as `megalm corpus classifier train` does, by a hash of their text; every contender trains on the
same ones, chooses its threshold by the best F1 of a cross-validation on them, and is measured on the same held-out ones.
fastText takes part where the package with training is installed (`fasttext-predict`, which megalm uses, has none).
`--speed` measures instead how many documents a second of one core's time are scored.
"""

import argparse
import csv
import gzip
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union

from megalm.corpus.classify.features import plain_text
from megalm.corpus.classify.labelled import Labelled
from megalm.corpus.classify.metrics import best_f1_threshold, two_labels
from megalm.corpus.classify.model import Classifier
from megalm.corpus.classify.train import TrainSettings, train_classifier
from megalm.corpus.words import Split

HELD_OUT, FOLDS = 0.2, 5
Scorer = Callable[[Sequence[str]], np.ndarray]
"""Gives texts the probability of the positive label."""


class Set(NamedTuple):
    """A labelled set: its file below the folder, keys or numbers of text and label, and the labels that are looked for."""

    path: str
    text: str | int
    label: str | int
    positive: tuple[str, ...]


DAVIDSON = "bias_safety/davidson_hate_speech/labeled_data.csv.gz"
SETS = {
    "quality (DCLM's votes)": Set("text_quality_dclm/majority.jsonl.gz", "text", "label", ("1",)),
    "toxic (Davidson: hate, offensive)": Set(DAVIDSON, "tweet", "class", ("0", "1")),
    "hate (Davidson: hate)": Set(DAVIDSON, "tweet", "class", ("0",)),
    "spam (SMS)": Set("sms_spam/sms_spam.tsv", 1, 0, ("spam",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled sets")
    parser.add_argument("--seeds", type=int, default=5, help="how many partings into training and held-out")
    parser.add_argument("--speed", action="store_true", help="measure the speed of scoring instead")
    arguments = parser.parse_args()
    for title, entry in SETS.items():
        if not (arguments.data / entry.path).exists():
            continue
        documents = list(read(arguments.data / entry.path, entry))
        texts, flags = [text for text, _ in documents], np.array([flag for _, flag in documents])
        words = sum(len(Split(text).words) for text in texts) / len(texts)
        print(f"\n{title}: {len(texts)} documents of {words:.0f} words, {flags.mean():.3f} positive")
        if arguments.speed:
            measure_speed(texts, flags)
        else:
            compare(texts, flags, arguments.seeds)


def compare(texts: list[str], flags: np.ndarray, seeds: int) -> None:
    """Print mean and deviation over the seeds of what each contender reaches on held-out documents."""
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        held = np.array([chance(text, f"held out {seed}") < HELD_OUT for text in texts])
        folds = np.array([int(chance(text, f"fold {seed}") * FOLDS) for text in texts])[~held]
        training, trained = [t for t, h in zip(texts, held, strict=True) if not h], flags[~held]
        rest, truth = [t for t, h in zip(texts, held, strict=True) if h], flags[held]
        for name, train in contenders().items():
            threshold = best_f1_threshold(trained, left_out(train, training, trained, folds))
            scores = train(training, trained)(rest)
            found.setdefault(name, []).append(two_labels(truth, scores, threshold))
        found.setdefault("all called positive", []).append(two_labels(truth, np.ones(len(truth)), 0.5))
    print(f"{'':36}" + "".join(f"{key:>16}" for key in ("F1", "precision", "recall", "accuracy", "AUC")))
    for name, rates in found.items():
        columns = []
        for key in ("f1", "precision", "recall", "accuracy", "auc"):
            values = np.array([rate[key] for rate in rates])
            columns.append(f"{values.mean():8.3f} ±{values.std():6.3f}")
        print(f"  {name:34}" + "".join(columns))


def contenders() -> dict[str, Callable[[Sequence[str], np.ndarray], Scorer]]:
    """What is compared: a function that trains on texts and flags and gives a scorer."""
    found = {
        "megalm": train_megalm,
        "scikit-learn, words": lambda t, y: train_sklearn(t, y, characters=False),
        "scikit-learn, words and characters": lambda t, y: train_sklearn(t, y, characters=True),
    }
    try:
        import fasttext

        if hasattr(fasttext, "train_supervised"):
            found["fastText"] = train_fasttext
    except ImportError:
        pass
    return found


def left_out(train: Callable, texts: list[str], flags: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """The score of each text by a model trained without its fold."""
    scores = np.empty(len(texts))
    for fold in range(FOLDS):
        own = folds == fold
        scorer = train([t for t, out in zip(texts, own, strict=True) if not out], flags[~own])
        scores[own] = scorer([t for t, out in zip(texts, own, strict=True) if out])
    return scores


def train_megalm(texts: Sequence[str], flags: np.ndarray) -> Scorer:
    """megalm's classifier with its defaults, through its file."""
    with tempfile.TemporaryDirectory() as folder:
        path, model = Path(folder) / "labelled.jsonl", Path(folder) / "model.safetensors"
        lines = [json.dumps({"text": t, "label": int(flag)}) for t, flag in zip(texts, flags, strict=True)]
        path.write_text("\n".join(lines))
        train_classifier([path], model, TrainSettings(held_out=0, folds=2))
        classifier = Classifier.load(model)
    return lambda new: np.array([classifier.probabilities(Split(text).tokens)[1] for text in new])


def train_sklearn(texts: Sequence[str], flags: np.ndarray, characters: bool) -> Scorer:
    """TF-IDF of words and pairs of words, perhaps of 3 to 5 characters too, and logistic regression."""
    vectorizers = [TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2)]
    if characters:
        vectorizers.append(TfidfVectorizer(sublinear_tf=True, analyzer="char", ngram_range=(3, 5), min_df=2))
    model = make_pipeline(make_union(*vectorizers), LogisticRegression(C=10, max_iter=1000))
    model.fit(texts, flags)
    return lambda new: model.predict_proba(new)[:, 1]


def train_fasttext(texts: Sequence[str], flags: np.ndarray) -> Scorer:
    """fastText as DCLM and others use it: pairs of words, 25 rounds, one thread for the same result again."""
    import fasttext

    def line(text: str) -> str:
        return plain_text(Split(text).tokens)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.txt"
        lines = [f"__label__{int(flag)} {line(text)}" for text, flag in zip(texts, flags, strict=True)]
        path.write_text("\n".join(lines))
        model = fasttext.train_supervised(
            str(path), wordNgrams=2, epoch=25, lr=0.5, minn=3, maxn=5, thread=1, seed=1, verbose=0
        )
    # Not model.predict, which asks numpy 2 for what it no longer does.
    return lambda new: np.array(
        [
            dict((n, p) for p, n in model.f.predict(line(t) + "\n", 2, 0.0, "strict")).get("__label__1", 0.0)
            for t in new
        ]
    )


def measure_speed(texts: list[str], flags: np.ndarray) -> None:
    """Print how fast documents of 400 words are scored, with and without the splitting into words that steps share."""
    with tempfile.TemporaryDirectory() as folder:
        path, model = Path(folder) / "labelled.jsonl", Path(folder) / "model.safetensors"
        lines = [json.dumps({"text": t, "label": int(flag)}) for t, flag in zip(texts, flags, strict=True)]
        path.write_text("\n".join(lines))
        begin = time.process_time()
        training = train_classifier([path], model, TrainSettings()).training
        seconds = time.process_time() - begin
        classifier = Classifier.load(model)
        print(
            f"  training {seconds:.1f} s ({training.iterations} iterations at the end), file {model.stat().st_size:,} bytes"
        )
    words = " ".join(texts).split()
    documents = [" ".join(words[i : i + 400]) for i in range(0, min(len(words), 800_000) - 400, 400)]
    begin = time.process_time()
    tokens = [Split(text).tokens for text in documents]
    split = time.process_time() - begin
    begin = time.process_time()
    for each in tokens:
        classifier.probabilities(each)
    score = time.process_time() - begin
    print(
        f"  {len(documents)} documents of 400 words: {len(documents) / score:,.0f} documents/s scored, "
        f"{len(documents) / (score + split):,.0f} with the splitting into words"
    )


def chance(text: str, purpose: str) -> float:
    """The number by which training parts documents."""
    return Labelled(plain_text(Split(text).tokens), "").chance(purpose)


def read(path: Path, entry: Set) -> Iterator[tuple[str, bool]]:
    """Texts that are not empty, and whether their label is looked for."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    if ".jsonl" in path.name:
        rows = map(json.loads, filter(None, text.split("\n")))
    elif ".tsv" in path.name:
        rows = (line.split("\t", 1) for line in filter(None, text.split("\n")))
    else:
        rows = csv.DictReader(io.StringIO(text, newline=""))
    for row in rows:
        if plain_text(Split(row[entry.text]).tokens):
            yield row[entry.text], str(row[entry.label]) in entry.positive


if __name__ == "__main__":
    main()
