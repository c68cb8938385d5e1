"""Logistic regression against scikit-learn's, and the sparse matrix against a dense one."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from megalm.corpus.classify import matrix as matrix_module
from megalm.corpus.classify.features import FeatureSettings, count_ngrams
from megalm.corpus.classify.matrix import Matrix, Rows
from megalm.corpus.classify.solver import fit_logistic, minimise, probabilities
from tests.corpus.classify.texts import labelled

SETTINGS = FeatureSettings(bucket_bits=10)


def problem(tmp_path, kinds) -> tuple[Matrix, np.ndarray]:
    rows = Rows(tmp_path)
    records = labelled(120, kinds, wrong=0.15)
    for record in records:
        rows.add(count_ngrams(record["text"], SETTINGS))
    labels = np.array([kinds.index(record["label"]) for record in records])
    return rows.matrix(rows.rarity(1 << 10, 2)), labels


def dense(matrix: Matrix) -> np.ndarray:
    whole = np.zeros((len(matrix.offsets) - 1, matrix.columns))
    for row, (begin, end) in enumerate(zip(matrix.offsets[:-1], matrix.offsets[1:], strict=True)):
        np.add.at(whole[row], matrix.entries[begin:end], matrix.values[begin:end])
    return whole


@pytest.mark.parametrize("kinds", [("bad", "good"), ("bad", "good", "ugly")], ids=["two", "three"])
@pytest.mark.parametrize("c", [0.1, 10])
def test_weights_equal_those_of_scikit_learn(tmp_path, kinds, c):
    matrix, labels = problem(tmp_path, kinds)
    weights = np.random.default_rng(0).uniform(0.5, 2, len(labels))
    weights[::7] = 0
    fit = fit_logistic(matrix, labels, weights, len(kinds), c, tolerance=1e-10)
    oracle = LogisticRegression(C=c, tol=1e-10, max_iter=10_000)
    oracle.fit(dense(matrix), labels, weights)
    assert fit.converged
    np.testing.assert_allclose(fit.weights_LF, oracle.coef_, atol=1e-6)
    found = probabilities(fit.logits(matrix))
    np.testing.assert_allclose(found, oracle.predict_proba(dense(matrix)), atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1)


def test_the_default_tolerance_moves_no_probability_by_a_percent(tmp_path):
    matrix, labels = problem(tmp_path, ("bad", "good"))
    exact, usual = (
        probabilities(fit_logistic(matrix, labels, np.ones(len(labels)), 2, 10, tolerance).logits(matrix))
        for tolerance in (1e-10, 1e-5)
    )
    assert 0 < np.abs(exact - usual).max() < 0.01


def test_products_equal_those_of_a_dense_matrix_in_any_blocks(tmp_path, monkeypatch):
    matrix, _ = problem(tmp_path, ("bad", "good"))
    whole, rng = dense(matrix), np.random.default_rng(1)
    weights, rows = rng.normal(size=(2, matrix.columns)), rng.normal(size=(len(whole), 2))
    for block in (1, 1000, 1 << 22):
        monkeypatch.setattr(matrix_module, "_BLOCK", block)
        np.testing.assert_allclose(matrix.times(weights), whole @ weights.T, atol=1e-12)
        np.testing.assert_allclose(matrix.transposed_times(rows), rows.T @ whole, atol=1e-12)


def test_rarity_is_the_inverse_document_frequency_and_rare_buckets_are_left_out(tmp_path):
    rows = Rows(tmp_path)
    for text in ("a b", "a c", "a b", "d"):
        rows.add(count_ngrams(text, FeatureSettings(max_char_ngram=0, word_ngrams=1, bucket_bits=16)))
    rarity = rows.rarity(1 << 16, 2)
    np.testing.assert_allclose(sorted(rarity[rarity > 0]), [np.log(5 / 4) + 1, np.log(5 / 3) + 1], rtol=1e-6)
    whole = dense(rows.matrix(rarity))
    assert whole.shape == (4, 2)
    np.testing.assert_allclose((whole**2).sum(1), [1, 1, 1, 0], rtol=1e-6)


def test_the_minimum_of_an_ill_conditioned_square_is_found():
    scale = np.logspace(0, 3, 20)
    goal = np.arange(20.0)

    def objective(x):
        return float((scale * (x - goal) ** 2).sum() / 2), scale * (x - goal)

    point, iterations, converged = minimise(objective, np.zeros(20), 1e-8, 1000)
    assert converged and iterations < 300
    np.testing.assert_allclose(point, goal, atol=1e-7)
    assert minimise(objective, np.zeros(20), 1e-8, 2)[1:] == (2, False)
