"""The steps: what stays, reasons, scores in metadata and histograms, and the same corpus however its work is dealt out."""

import json
import multiprocessing
import os
import signal

import pytest

from megalm.corpus.build import build_corpus
from megalm.corpus.classify.features import FeatureSettings
from megalm.corpus.classify.model import Classifier
from megalm.corpus.classify.steps import QualityClassifier, ToxicityClassifier
from megalm.corpus.classify.train import TrainSettings, train_classifier
from megalm.corpus.registry import step_class
from megalm.corpus.words import Split
from megalm.errors import UserError
from tests.corpus.classify.texts import labelled, write
from tests.corpus.documents import document
from tests.corpus.recipes import documents_of, make_recipe

RECORDS = labelled(30, seed=9)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    settings = TrainSettings(features=FeatureSettings(bucket_bits=12))
    for name, kinds in (("two", ("bad", "good")), ("three", ("bad", "good", "ugly"))):
        train_classifier([write(folder / "l.jsonl", labelled(120, kinds))], folder / name, settings)
    return folder


def make(step, **options):
    made = step(step.Settings(**options))
    made.start()
    return made


def judged(step, records=RECORDS) -> dict[str, str | None]:
    return {record["id"]: step.apply(document(record["text"])) for record in records}


def test_quality_keeps_what_reaches_the_stored_threshold_and_toxicity_what_does_not(models):
    good = {record["id"] for record in RECORDS if record["label"] == "good"}
    kept = judged(make(QualityClassifier, model=models / "two"))
    assert {id for id, reason in kept.items() if reason is None} == good
    assert set(kept.values()) == {None, "quality_classifier.below"}
    toxic = judged(make(ToxicityClassifier, model=models / "two", label="bad"))
    assert {id for id, reason in toxic.items() if reason is None} == good
    assert set(toxic.values()) == {None, "toxicity_classifier.above"}
    turned = judged(make(QualityClassifier, model=models / "two", keep="below"))
    assert all((turned[id] is None) != (kept[id] is None) for id in kept)


def test_the_score_goes_to_the_metadata_and_into_bins_of_a_twentieth(models):
    step = make(QualityClassifier, model=models / "two", threshold=0, score_key="edu")
    classifier, bins = Classifier.load(models / "two"), set()
    for record in RECORDS:
        one = document(record["text"])
        assert step.apply(one) is None
        assert one.metadata == {"edu": classifier.score(Split(record["text"]).tokens, "good")}
        bins.add(f"{int(one.metadata['edu'] * 20) / 20:.2g}")
    assert set(step.tally.histograms["edu"]) == bins and len(bins) > 3
    assert step.tally.histograms["edu"].total() == len(RECORDS)


def test_thresholds_of_the_recipe_go_before_the_stored_one(models):
    assert set(judged(make(QualityClassifier, model=models / "two", threshold=1)).values()) == {
        "quality_classifier.below"
    }
    assert set(judged(make(ToxicityClassifier, model=models / "two", threshold=1)).values()) == {None}


def test_of_three_labels_one_is_named(models):
    step = make(ToxicityClassifier, model=models / "three", label="ugly")
    ugly = judged(step, labelled(30, ("good", "ugly")))
    assert [reason is None for reason in ugly.values()] == [True, False] * 15
    with pytest.raises(UserError, match="has the labels bad, good, ugly; say which one is meant"):
        make(ToxicityClassifier, model=models / "three")


def test_documents_in_other_languages_pass_without_a_score(models):
    step = make(QualityClassifier, model=models / "two", languages=["en"], threshold=1)
    one = document("a cheap prize", language="de")
    assert step.apply(one) is None and "quality_score" not in one.metadata
    assert step.apply(document("a cheap prize", language="en")) == "quality_classifier.below"


def test_a_model_that_changed_ends_a_build_that_goes_on(models, tmp_path):
    write(tmp_path / "in.jsonl", RECORDS)
    (tmp_path / "model").write_bytes((models / "two").read_bytes())
    steps = [{"quality_classifier": {"model": str(tmp_path / "model")}}]
    build_corpus(make_recipe(tmp_path / "in.jsonl", tmp_path / "out", steps))
    os.utime(tmp_path / "model", ns=(0, 0))
    with pytest.raises(UserError, match="model has changed since"):
        build_corpus(make_recipe(tmp_path / "in.jsonl", tmp_path / "out", steps))
    with pytest.raises(UserError, match="none does not exist; check the path"):
        steps = [{"quality_classifier": {"model": str(tmp_path / "none")}}]
        build_corpus(make_recipe(tmp_path / "in.jsonl", tmp_path / "none", steps))


def build(recipe) -> None:
    build_corpus(recipe)


def test_a_killed_build_and_another_dealing_out_give_the_same_documents(models, tmp_path, own_steps):
    write(tmp_path / "in.jsonl", RECORDS)
    spent = tmp_path / "spent"
    steps = [
        {"bomb": {"id": "d20", "spent": str(spent)}},
        {"quality_classifier": {"model": str(models / "two")}},
        {"toxicity_classifier": {"model": str(models / "two"), "label": "bad", "threshold": 0.4}},
    ]

    def recipe(output, **keys):
        return make_recipe(tmp_path / "in.jsonl", tmp_path / output, steps, keep_removed=True, **keys)

    child = multiprocessing.get_context("fork").Process(target=build, args=(recipe("killed"),))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL and spent.exists()
    build_corpus(recipe("killed"))
    build_corpus(recipe("whole"))
    assert documents_of(tmp_path / "killed") == documents_of(tmp_path / "whole")
    build_corpus(recipe("one", tasks=1))
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "one")]
    first, second = ([step | {"seconds": 0} for step in report["steps"]] for report in reports)
    assert first == second
    assert (
        set(first[1]["removed"]) == {"quality_classifier.below"} and "quality_score" in first[1]["histograms"]
    )


def test_the_names_in_recipes_are_these():
    assert step_class("quality_classifier") is QualityClassifier
    assert step_class("toxicity_classifier") is ToxicityClassifier
