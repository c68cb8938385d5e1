"""BLEU and chrF of all texts together, with intervals."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megalm.evaluate.bootstrap import Float64, Score, bootstrap

CORPUS_METRICS = ("bleu", "chrf")


def corpus_score(
    name: str, predictions: Sequence[str], references: Sequence[Sequence[str]], seed: int
) -> Score:
    """`bleu` or `chrf` as `metrics.bleu` and `metrics.chrf` compute them, 0 to 100.

    sacrebleu's counts of each text are taken once, and added up anew for each selection of texts: its own bootstrap fails where scores
    of zero mix with others.
    """
    from sacrebleu.metrics import BLEU, CHRF

    metric: Any = {"bleu": BLEU, "chrf": CHRF}[name]()
    streams = [list(stream) for stream in zip_longest(*references)]
    counts_QX = np.array(metric._extract_corpus_statistics(list(predictions), streams))

    def statistic(drawn_NQ: NDArray[np.int64]) -> Float64:
        return np.array([_score(metric, counts_QX[drawn_Q].sum(0)) for drawn_Q in drawn_NQ], np.float64)

    return bootstrap(statistic, len(predictions), seed)


def _score(metric: Any, counts_X: NDArray[np.int64]) -> float:
    return float(metric._compute_score_from_stats(counts_X.tolist()).score)
