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
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_union

from megalm.corpus.classify.features import plain_text
from megalm.corpus.classify.labelled import Labelled
from megalm.corpus.classify.metrics import best_f1_threshold, two_labels
from megalm.corpus.classify.model import Classifier
from megalm.corpus.classify.train import TrainSettings, train_classifier
from megalm.corpus.words import Split

HELD_OUT, FOLDS = 0.2, 5  # the defaults of training
Peer = Callable[[list[str], np.ndarray, np.ndarray, list[str]], tuple[np.ndarray, np.ndarray]]
"""Trains on texts, flags and folds; gives each text's score without its fold, and the scores of other texts."""


class Set(NamedTuple):
    """A labelled set: its file below the folder, keys or numbers of text and label, and the labels that are looked for."""

    path: str
    text: str | int
    label: str | int
    positive: tuple[str, ...]


DAVIDSON = "bias_safety/davidson_hate_speech/labeled_data.csv.gz"
SETS = {
    "quality (DCLM's votes)": Set("text_quality_dclm/majority.jsonl.gz", "text", "label", ("1",)),
    "spam (SMS)": Set("sms_spam/sms_spam.tsv", 1, 0, ("spam",)),
    "toxic (Davidson: hate, offensive)": Set(DAVIDSON, "tweet", "class", ("0", "1")),
    "hate (Davidson: hate)": Set(DAVIDSON, "tweet", "class", ("0",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled sets")
    parser.add_argument(
        "--sets", default="", help="only sets whose title begins with one of these, e.g. toxic,spam"
    )
    parser.add_argument("--seeds", type=int, default=5, help="how many partings into training and held-out")
    parser.add_argument("--speed", action="store_true", help="measure the speed of scoring instead")
    arguments = parser.parse_args()
    chosen = tuple(arguments.sets.split(","))
    for title, entry in SETS.items():
        if not (arguments.data / entry.path).exists() or not title.startswith(chosen):
            continue
        documents = list(read(arguments.data / entry.path, entry))
        texts, flags = [text for text, _ in documents], np.array([flag for _, flag in documents])
        words = sum(len(Split(text).words) for text in texts) / len(texts)
        print(
            f"\n{title}: {len(texts)} documents of {words:.0f} words, {flags.mean():.3f} positive", flush=True
        )
        if arguments.speed:
            measure_speed(texts, flags)
        else:
            compare(texts, flags, arguments.seeds)


def compare(texts: list[str], flags: np.ndarray, seeds: int) -> None:
    """Print mean and, of several seeds, deviation of what each contender reaches on held-out documents."""
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        held = np.array([chance(text, f"held out {seed}") < HELD_OUT for text in texts])
        folds = np.array([int(chance(text, f"fold {seed}") * FOLDS) for text in texts])[~held]
        training, trained = [t for t, h in zip(texts, held, strict=True) if not h], flags[~held]
        rest, truth = [t for t, h in zip(texts, held, strict=True) if h], flags[held]
        ours = train_megalm(texts, flags, seed)
        assert ours["documents"] == len(rest) and ours["positives"] == truth.sum()
        found.setdefault("megalm", []).append(ours)
        for name, train in peers().items():
            left_out, scores = train(training, trained, folds, rest)
            found.setdefault(name, []).append(two_labels(truth, scores, best_f1_threshold(trained, left_out)))
        found.setdefault("all called positive", []).append(two_labels(truth, np.ones(len(truth)), 0.5))
    print(f"{'':36}" + "".join(f"{key:>16}" for key in ("F1", "precision", "recall", "accuracy", "AUC")))
    for name, rates in found.items():
        columns = []
        for key in ("f1", "precision", "recall", "accuracy", "auc"):
            values = np.array([rate[key] for rate in rates])
            deviation = f" ±{values.std():6.3f}" if len(values) > 1 else " " * 8
            columns.append(f"{values.mean():8.3f}{deviation}")
        print(f"  {name:34}{''.join(columns)}".rstrip(), flush=True)


def peers() -> dict[str, Peer]:
    """What megalm is compared with."""
    found: dict[str, Peer] = {
        "scikit-learn, words": partial(train_sklearn, False),
        "scikit-learn, words and characters": partial(train_sklearn, True),
    }
    try:
        import fasttext

        if hasattr(fasttext, "train_supervised"):
            found["fastText"] = train_fasttext
    except ImportError:
        pass
    return found


def train_megalm(texts: Sequence[str], flags: np.ndarray, seed: int) -> dict[str, Any]:
    """What megalm says of its classifier with its defaults on the documents that it holds out."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "labelled.jsonl", texts, flags)
        held_out = train_classifier([path], Path(folder) / "m", TrainSettings(seed=seed)).training.held_out
    assert held_out is not None
    return held_out


def write(path: Path, texts: Sequence[str], flags: np.ndarray) -> Path:
    """Texts and flags as JSON lines."""
    lines = [json.dumps({"text": t, "label": int(flag)}) for t, flag in zip(texts, flags, strict=True)]
    path.write_text("\n".join(lines))
    return path


def train_sklearn(
    characters: bool, texts: list[str], flags: np.ndarray, folds: np.ndarray, rest: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """TF-IDF of words and pairs of words, perhaps of 3 to 5 characters too, and logistic regression."""
    vectorizers = [TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2)]
    if characters:
        vectorizers.append(TfidfVectorizer(sublinear_tf=True, analyzer="char", ngram_range=(3, 5), min_df=2))
    vectorizer, model = make_union(*vectorizers), LogisticRegression(C=10, max_iter=1000)
    features = vectorizer.fit_transform(texts).tocsr()
    left_out = np.empty(len(texts))
    for fold in range(FOLDS):
        own = folds == fold
        left_out[own] = model.fit(features[~own], flags[~own]).predict_proba(features[own])[:, 1]
    return left_out, model.fit(features, flags).predict_proba(vectorizer.transform(rest))[:, 1]


def train_fasttext(
    texts: list[str], flags: np.ndarray, folds: np.ndarray, rest: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """fastText with pairs of words and 25 rounds, on one thread for the same result again."""
    import fasttext

    lines = np.array([plain_text(Split(text).tokens) for text in texts], object)

    def train(chosen: np.ndarray, asked: Sequence[str]) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "train.txt"
            path.write_text("\n".join(f"__label__{int(flags[i])} {lines[i]}" for i in np.flatnonzero(chosen)))
            model = fasttext.train_supervised(
                str(path), wordNgrams=2, epoch=25, lr=0.5, bucket=200_000, thread=1, seed=1, verbose=0
            )
        # Not model.predict, which asks numpy 2 for what it no longer does.
        found = [{n: p for p, n in model.f.predict(line + "\n", 2, 0.0, "strict")} for line in asked]
        return np.array([names.get("__label__1", 0.0) for names in found])

    left_out = np.empty(len(texts))
    for fold in range(FOLDS):
        own = folds == fold
        left_out[own] = train(~own, lines[own])
    return left_out, train(np.ones(len(texts), bool), [plain_text(Split(text).tokens) for text in rest])


def measure_speed(texts: list[str], flags: np.ndarray) -> None:
    """Print how fast documents of 400 words are scored, with and without the splitting into words that steps share."""
    with tempfile.TemporaryDirectory() as folder:
        path, model = write(Path(folder) / "labelled.jsonl", texts, flags), Path(folder) / "model.safetensors"
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
