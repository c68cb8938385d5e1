"""The measures against scikit-learn's, the thresholds against trying all of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from megalm.corpus.classify.metrics import (
    auc,
    best_f1_threshold,
    measure,
    precision_threshold,
    share_threshold,
    two_labels,
)
from megalm.errors import UserError

documents = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])), min_size=2, max_size=30
).filter(lambda rows: len({truth for truth, _ in rows}) == 2)


def split(rows) -> tuple[np.ndarray, np.ndarray]:
    truth, scores = zip(*rows, strict=True)
    return np.array(truth), np.array(scores)


@settings(max_examples=60)
@given(documents)
def test_measures_of_two_labels_are_scikit_learns(rows):
    truth, scores = split(rows)
    found = two_labels(truth, scores, 0.5)
    called = scores >= 0.5
    precision, recall, f1, _ = oracle.precision_recall_fscore_support(
        truth, called, average="binary", zero_division=0
    )
    wanted = {
        "positives": truth.sum(),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "accuracy": oracle.accuracy_score(truth, called),
        "auc": oracle.roc_auc_score(truth, scores),
    }
    assert found == pytest.approx(wanted, abs=1e-6)


@settings(max_examples=60)
@given(documents, st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.6, 0.8, 0.9, 1.0]))
def test_thresholds_are_the_best_of_all(rows, wish):
    truth, scores = split(rows)
    tried = {
        float(t): two_labels(truth, scores, t) for t in [*np.unique(scores), *(np.unique(scores) - 1e-9)]
    }
    assert two_labels(truth, scores, best_f1_threshold(truth, scores))["f1"] == max(
        r["f1"] for r in tried.values()
    )
    reaching = [rates["recall"] for rates in tried.values() if rates["precision"] >= wish and rates["recall"]]
    called = [(scores >= t).sum() for t in tried]
    try:
        found = two_labels(truth, scores, precision_threshold(truth, scores, wish))
        assert found["recall"] == max(reaching)
    except UserError as error:
        assert "no threshold has a precision of" in str(error)
        assert not [recall for recall in reaching if recall]
    share = (scores >= share_threshold(scores, wish)).sum()
    assert abs(share - wish * len(scores)) == pytest.approx(
        min(abs(c - wish * len(scores)) for c in called if c)
    )


def test_three_labels_are_measured_each_against_the_rest():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 200)
    scores = rng.dirichlet(np.ones(3), 200) + 0.3 * np.eye(3)[truth]
    scores /= scores.sum(1, keepdims=True)
    found = measure(truth, scores, ["a", "b", "c"], 0.5)
    called = scores.argmax(1)
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(truth, called), abs=1e-6)
    assert found["macro_f1"] == pytest.approx(oracle.f1_score(truth, called, average="macro"), abs=1e-6)
    assert found["auc"] == pytest.approx(oracle.roc_auc_score(truth, scores, multi_class="ovr"), abs=1e-6)
    assert list(found["labels"]) == ["a", "b", "c"]
    assert found["labels"]["b"]["positives"] == (truth == 1).sum()


def test_equal_scores_have_an_area_of_one_half():
    assert auc(np.array([True, False, True]), np.full(3, 0.5)) == 0.5
