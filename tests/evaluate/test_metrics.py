"""The measures against the original libraries, and against values worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF
from sklearn import metrics as oracle

from megalm.evaluate.metrics import (
    TEXT_METRICS,
    classification_metrics,
    confusion_matrix,
    exact_match,
    normalize_answer,
    text_metrics,
    token_f1,
)

PREDICTIONS = ["The cats were sitting on the mat.", "it rains", "A stitch\nin time"]
REFERENCES = [
    ["The cat sat on the mat.", "A cat was sitting on a mat."],
    ["it rained", "it rains again", "rain"],
    ["A stitch in time\nsaves nine"],
]


def test_answers_are_normalized_by_squads_rule():
    assert normalize_answer("  The Cat's  an\tanswer, a 42! ") == "cats answer 42"
    assert normalize_answer("Theatre: an-other") == "theatre another"


@pytest.mark.parametrize(
    ("prediction", "references", "f1", "match"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 1.0, 1.0),
        # 2 of 3 words shared with a reference of 2: precision 2/3, recall 1
        ("in the Eiffel Tower", ["Paris", "Eiffel Tower"], 0.8, 0.0),
        # a word counts as often as both have it
        ("to to to", ["to be to be"], 4 / 7, 0.0),
        ("London", ["Paris"], 0.0, 0.0),
        ("", [""], 1.0, 1.0),
        ("the", [""], 1.0, 1.0),
        ("something", [""], 0.0, 0.0),
    ],
)
def test_f1_and_exact_match_take_the_best_reference(prediction, references, f1, match):
    assert token_f1(prediction, references) == pytest.approx(f1)
    assert exact_match(prediction, references) == match


def test_rouge_is_the_librarys_with_the_best_reference():
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    found = text_metrics(kinds, PREDICTIONS, REFERENCES)
    scorer = RougeScorer(kinds, use_stemmer=True)
    for kind in kinds:
        best = [
            max(scorer.score(reference, text)[kind].fmeasure for reference in references)
            for text, references in zip(PREDICTIONS, REFERENCES, strict=True)
        ]
        assert found[kind] == pytest.approx(np.mean(best), abs=1e-12)
    # by hand, stemmed: the, cat, on, the, mat of 7 and 6 words; "it rained" is "it rains"; 4 of 4 and 6 words
    assert found["rouge1"] == pytest.approx((10 / 13 + 1 + 0.8) / 3, abs=1e-12)


def test_bleu_and_chrf_are_sacrebleus_with_unequal_numbers_of_references():
    found = text_metrics(["bleu", "chrf"], PREDICTIONS, REFERENCES)
    streams = [[refs[i] if i < len(refs) else None for refs in REFERENCES] for i in range(3)]
    assert found["bleu"] == pytest.approx(BLEU().corpus_score(PREDICTIONS, streams).score)
    assert found["chrf"] == pytest.approx(CHRF().corpus_score(PREDICTIONS, streams).score)
    assert 0 < found["bleu"] < 100 and 0 < found["chrf"] < 100


def test_every_measure_is_full_for_the_reference_itself_and_falls_for_another_text():
    texts = ["a long enough answer of more than four words", "and one more such answer of that kind"]
    full = text_metrics(TEXT_METRICS, texts, [[text] for text in texts])
    none = text_metrics(TEXT_METRICS, ["xyz"] * 2, [[text] for text in texts])
    for name in TEXT_METRICS:
        assert full[name] == pytest.approx(100 if name in ("bleu", "chrf") else 1)
        assert none[name] < 0.01 * full[name]


rows = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


@settings(max_examples=20, deadline=None)
@given(rows)
def test_measures_of_classes_are_scikit_learns(pairs):
    truth, called = np.array(pairs).T
    labels = ["a", "b", "c", "never meant by chance"]
    matrix = confusion_matrix(truth, called, 4)
    assert (matrix == oracle.confusion_matrix(truth, called, labels=range(4))).all()
    found = classification_metrics(matrix, labels)
    options = {"labels": range(4), "zero_division": 0}
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(truth, called))
    assert found["macro_f1"] == pytest.approx(oracle.f1_score(truth, called, average="macro", **options))
    assert found["micro_f1"] == pytest.approx(oracle.f1_score(truth, called, average="micro", **options))
    wanted = oracle.precision_recall_fscore_support(truth, called, **options)
    for number, label in enumerate(labels):
        of_class = dict(
            zip(("precision", "recall", "f1", "support"), (w[number] for w in wanted), strict=True)
        )
        assert found["classes"][label] == pytest.approx(of_class)


def test_matrices_of_parts_add_up():
    truth, called = np.array([0, 1, 1, 2]), np.array([0, 1, 2, 0])
    parts = [confusion_matrix(truth[part], called[part], 3) for part in (slice(1), slice(1, 4))]
    assert (sum(parts) == confusion_matrix(truth, called, 3)).all()
