"""Training: what is held out, what is chosen where, the same bytes again, and inputs that nothing can be learnt from."""

import json

import numpy as np
import pytest

from megalm.corpus.classify.features import FeatureSettings
from megalm.corpus.classify.labelled import Labelled
from megalm.corpus.classify.metrics import measure, two_labels
from megalm.corpus.classify.model import Classifier
from megalm.corpus.classify.train import TrainSettings, train_classifier
from megalm.corpus.words import Split
from megalm.errors import UserError
from tests.corpus.classify.texts import labelled, write

FEATURES = FeatureSettings(bucket_bits=12)


def train(tmp_path, records, name="model", **options):
    path = write(tmp_path / "labelled.jsonl", records)
    settings = TrainSettings(**({"features": FEATURES} | options))
    output = tmp_path / f"{name}.safetensors"
    return train_classifier([path], output, settings).training, Classifier.load(output)


def held_out(record, seed=0, share=0.2) -> bool:
    text = " ".join(Split(record["text"]).tokens).lower()
    return Labelled(text, "").chance(f"held out {seed}") < share


def scores(classifier, records) -> np.ndarray:
    return np.array([classifier.probabilities(Split(record["text"]).tokens) for record in records])


def test_texts_that_can_be_told_apart_are(tmp_path):
    training, classifier = train(tmp_path, labelled(300))
    assert training.held_out["f1"] > 0.97 and training.cross_validation["auc"] > 0.99
    assert training.converged and classifier.labels == ["bad", "good"]


def test_measures_are_those_of_the_saved_model_on_texts_that_played_no_part(tmp_path):
    records = labelled(300, wrong=0.2)
    training, classifier = train(tmp_path, records)
    held = [record for record in records if held_out(record)]
    threshold = classifier.description.thresholds["good"]
    truth = np.array([record["label"] == "good" for record in held])
    assert 30 < len(held) < 90
    assert training.held_out == measure(
        truth.astype(int), scores(classifier, held), classifier.labels, threshold
    )
    # without them, in the training set alone, the model is the same
    _, other = train(tmp_path, [record for record in records if not held_out(record)], "other", held_out=0)
    np.testing.assert_array_equal(scores(classifier, held), scores(other, held))


def test_copies_lie_on_one_side_whatever_their_case_and_layout(tmp_path):
    records = labelled(60)
    copies = [record | {"text": record["text"].upper().replace(" ", "\n")} for record in records]
    training, _ = train(tmp_path, records + copies)
    assert training.copies == 60
    assert training.held_out["documents"] == 2 * sum(map(held_out, records))
    assert all(held_out(record) == held_out(copy) for record, copy in zip(records, copies, strict=True))


def test_another_seed_holds_other_texts_out(tmp_path):
    records = labelled(200)
    assert {r["id"] for r in records if held_out(r)} != {r["id"] for r in records if held_out(r, seed=1)}
    _, classifier = train(tmp_path, records, seed=1)
    rest = [record for record in records if not held_out(record, seed=1)]
    _, other = train(tmp_path, rest, "other", seed=1, held_out=0)
    np.testing.assert_array_equal(scores(classifier, records), scores(other, records))


def test_the_same_documents_give_the_same_bytes_and_no_time_or_path_is_in_them(tmp_path):
    records = labelled(100, wrong=0.1)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        train(tmp_path / folder, records, c=[1, 10])
    first, second = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in ("a", "b"))
    assert first == second
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["labelled.jsonl", "model.safetensors"]
    train(tmp_path / "a", labelled(100, wrong=0.1, seed=1))
    assert (tmp_path / "a" / "model.safetensors").read_bytes() != first


def test_positive_labels_stand_against_all_others(tmp_path):
    records = labelled(150, ("bad", "good", "ugly"))
    training, classifier = train(tmp_path, records, positive=["ugly", "bad"])
    assert classifier.labels == ["other", "bad+ugly"]
    assert training.documents == {"bad+ugly": 100, "other": 50}
    assert training.held_out["f1"] > 0.95


def test_three_labels_have_a_probability_and_a_threshold_each(tmp_path):
    records = labelled(240, ("bad", "good", "ugly"), wrong=0.1)
    training, classifier = train(tmp_path, records)
    assert set(classifier.description.thresholds) == {"bad", "good", "ugly"}
    assert training.held_out["macro_f1"] > 0.8
    np.testing.assert_allclose(scores(classifier, records).sum(1), 1)


def test_labels_may_be_nested_numbers_and_truth_values(tmp_path):
    records = [{"body": r["text"], "meta": {"keep": r["label"] == "good"}} for r in labelled(100)]
    training, classifier = train(tmp_path, records, text_key="body", label_key="meta.keep")
    assert classifier.labels == ["false", "true"] and training.documents == {"false": 50, "true": 50}
    records = [{"text": r["text"], "label": int(r["label"] == "good")} for r in labelled(100)]
    assert train(tmp_path, records)[1].labels == ["0", "1"]


def test_the_threshold_is_chosen_as_asked_on_documents_left_out_in_turn(tmp_path):
    records = labelled(300, wrong=0.3)

    def chosen(**options):
        training, classifier = train(tmp_path, records, **options)
        thresholds = classifier.description.thresholds
        assert thresholds["bad"] == 1 - thresholds["good"]
        return thresholds["good"], training.cross_validation

    best, rates = chosen()
    assert rates["f1"] >= max(chosen(threshold=t)[1]["f1"] for t in (0.3, 0.5, 0.7))
    assert chosen(precision=0.85)[1]["precision"] >= 0.85
    low, rates = chosen(share=0.9)
    assert rates["recall"] > 0.9 and low < best
    assert chosen(threshold=0.25)[0] == 0.25


def test_c_is_chosen_by_the_log_loss_of_documents_left_out(tmp_path):
    records = labelled(150, wrong=0.4)  # so much noise wants a strong penalty
    assert train(tmp_path, records, c=[0.01, 1, 10_000])[0].c < 10_000
    assert train(tmp_path, labelled(150), c=[0.001, 10_000])[0].c == 10_000


def test_balanced_labels_weigh_the_same(tmp_path):
    records = [
        record for n, record in enumerate(labelled(300, wrong=0.2)) if record["label"] == "bad" or n % 5 == 0
    ]
    means = [
        scores(train(tmp_path, records, balance=balance, c=[0.01])[1], records)[:, 1].mean()
        for balance in (0, 1)
    ]
    assert means[0] < 0.3 and 0.4 < means[1] < 0.6


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        ([], {}, "0 documents have none"),
        (labelled(20, ("good",)), {}, "two labels at least are needed, and 20 documents have good"),
        (labelled(20), {"positive": ["good", "bad"]}, "two labels at least"),
        (labelled(20), {"positive": ["god"]}, "no document has the label 'god' (found: bad, good)"),
        (
            [*labelled(50, ("good",)), labelled(1)[0]],
            {"held_out": 0},
            "only 1 texts for training have the label 'bad'",
        ),
        (labelled(8), {"held_out": 0.1}, "held-out documents has the label"),
        ([{"text": "a", "label": None}], {}, "line 1 has no label under 'label' (found keys text, label)"),
        ([{"text": "a", "label": ["x"]}], {}, "has no label under 'label'"),
        ([{"text": 3, "label": "x"}], {}, "has no text under 'text'"),
        (
            [{"text": str(n), "label": str(n)} for n in range(101)],
            {},
            "101 labels are too many, 100 are possible",
        ),
        (
            [{"text": str(n) * 7, "label": str(n // 5)} for n in range(10)],
            {"held_out": 0},
            "no n-gram is in 2 documents",
        ),
        (labelled(20), {"precision": 0.5, "share": 0.5}, "only one of threshold, precision and share"),
        (labelled(60, ("bad", "good", "ugly")), {"share": 0.5}, "is for two labels, there are 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_nothing_can_be_learnt_from_is_refused_in_one_line(tmp_path, records, options, message):
    with pytest.raises(UserError) as error:
        train(tmp_path, records, **options)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_precision_that_no_threshold_reaches_is_refused_with_the_best_one(tmp_path):
    records = [
        record | {"label": "bad" if n % 3 else "good"} for n, record in enumerate(labelled(90, ("ugly",)))
    ]
    with pytest.raises(
        UserError, match=r"no threshold has a precision of 1.0; the best is 0\.\d+; ask for less"
    ):
        train(tmp_path, records, precision=1.0)


def test_text_without_words_is_left_out_and_counted(tmp_path):
    records = [*labelled(60), {"text": " \n ", "label": "good"}]
    training, _ = train(tmp_path, records)
    assert training.empty == 1 and sum(training.documents.values()) == 60


def test_text_files_have_no_labels(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match="has no labels; give JSON lines"):
        train_classifier([tmp_path / "a.txt"], tmp_path / "m", TrainSettings())


def test_all_documents_may_be_trained_on(tmp_path):
    training, _ = train(tmp_path, labelled(60), held_out=0)
    assert training.held_out is None and training.cross_validation["documents"] == 60
    assert json.loads(training.model_dump_json())["held_out"] is None
    assert two_labels(np.array([True, False]), np.array([1.0, 0.0]), 0.5)["f1"] == 1
