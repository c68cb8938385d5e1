"""Measures of texts against references (ROUGE, F1, exact match, BLEU, chrF) and of called classes against true ones."""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megalm.corpus.classify.metrics import precision_recall_f1

Counts = NDArray[np.int64]
References = Sequence[Sequence[str]]
"""Of each text one or more references, any of which would do."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def text_metrics(
    names: Iterable[str], predictions: Sequence[str], references: References
) -> dict[str, float]:
    """The measures of TEXT_METRICS called `names` over all texts, by name.

    There has to be a text at least, and a reference of each.
    """
    assert len(predictions) == len(references) > 0 and all(references)
    return {name: float(TEXT_METRICS[name](predictions, references)) for name in names}


def normalize_answer(text: str) -> str:
    """Small letters, no ASCII punctuation, no English articles, single spaces: SQuAD's rule (arXiv:1606.05250, its script)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 where the text equals a reference after `normalize_answer`, else 0."""
    return float(normalize_answer(prediction) in map(normalize_answer, references))


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """F1 of the words that text and reference share after `normalize_answer`, with the best of the references.

    As in SQuAD 2.0 (arXiv:1806.03822), where one of the two is empty it is 1 if both are, else 0.
    """
    return max(_f1(normalize_answer(prediction).split(), normalize_answer(r).split()) for r in references)


def _f1(words: list[str], wanted: list[str]) -> float:
    if not words or not wanted:
        return float(words == wanted)
    shared = (Counter(words) & Counter(wanted)).total()
    return 2 * shared / (len(words) + len(wanted))


def rouge(kind: str, predictions: Sequence[str], references: References) -> float:
    """Mean F-measure of ROUGE (Lin 2004), with the best of each text's references.

    kind: rouge1, rouge2, rougeL or rougeLsum. By the package rouge-score, with Porter's stemmer as published figures of English summaries have it. It sees ASCII
    letters and digits alone: for other scripts take chrf.
    """
    from rouge_score.rouge_scorer import RougeScorer  # it imports nltk, which takes a second

    scorer = RougeScorer([kind], use_stemmer=True)
    pairs = zip(predictions, references, strict=True)
    return float(np.mean([scorer.score_multi(list(wanted), text)[kind].fmeasure for text, wanted in pairs]))


def bleu(predictions: Sequence[str], references: References) -> float:
    """BLEU of all texts together, 0 to 100, as sacrebleu computes it by default (arXiv:1804.08771)."""
    from sacrebleu import corpus_bleu

    return corpus_bleu(list(predictions), _streams(references)).score


def chrf(predictions: Sequence[str], references: References) -> float:
    """chrF2 of all texts together, 0 to 100: characters instead of words (Popovic 2015), by sacrebleu."""
    from sacrebleu import corpus_chrf

    return corpus_chrf(list(predictions), _streams(references)).score


def _streams(references: References) -> list[list[Any]]:
    """sacrebleu's form: the first reference of each text, the second, ...; None where a text has fewer."""
    return [list(stream) for stream in zip_longest(*references)]


def _mean(of_one: Callable[[str, Sequence[str]], float]) -> "TextMetric":
    def mean(predictions: Sequence[str], references: References) -> float:
        return float(np.mean([of_one(*pair) for pair in zip(predictions, references, strict=True)]))

    return mean


def _rouge(kind: str) -> "TextMetric":
    return lambda predictions, references: rouge(kind, predictions, references)


TextMetric = Callable[[Sequence[str], References], float]
TEXT_METRICS: dict[str, TextMetric] = {
    "rouge1": _rouge("rouge1"),
    "rouge2": _rouge("rouge2"),
    "rougeL": _rouge("rougeL"),
    "rougeLsum": _rouge("rougeLsum"),
    "f1": _mean(token_f1),
    "exact_match": _mean(exact_match),
    "bleu": bleu,
    "chrf": chrf,
}
"""Measures of texts by name; the greater the better."""


def confusion_matrix(truth_R: Counts, called_R: Counts, classes: int) -> Counts:
    """How many of the rows of each true class (first axis) were called each class (second axis); classes count from 0.

    Matrices of parts of the rows add up to that of all.
    """
    return np.bincount(truth_R * classes + called_R, minlength=classes**2).reshape(classes, classes)


def classification_metrics(matrix_CC: Counts, labels: Sequence[str]) -> dict[str, Any]:
    """Accuracy, macro and micro F1, and of each class precision, recall, F1 and support, from a confusion matrix.

    What has nothing to be divided by is 0, also in the macro mean, which is over all of `labels`. Where each row has one
    class, as here, micro F1 (of the counts of all classes together) is the accuracy.
    """
    right_C, called_C, support_C = matrix_CC.diagonal(), matrix_CC.sum(0), matrix_CC.sum(1)
    precision_C, recall_C, f1_C = precision_recall_f1(right_C, called_C, support_C)
    *_, micro = precision_recall_f1(right_C.sum(), called_C.sum(), support_C.sum())
    each = zip(labels, precision_C, recall_C, f1_C, support_C, strict=True)
    return {
        "accuracy": float(right_C.sum() / max(matrix_CC.sum(), 1)),
        "macro_f1": float(f1_C.mean()),
        "micro_f1": float(micro),
        "classes": {
            label: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for label, p, r, f, n in each
        },
    }
