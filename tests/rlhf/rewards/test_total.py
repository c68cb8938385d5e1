"""Rewards added up: weights, each part by itself, what is refused before a run, and a classifier among them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from megalm.config.rewards import (
    ClassifierConfig,
    ExactAnswerConfig,
    FormatConfig,
    ModelRewardConfig,
    StopConfig,
)
from megalm.corpus.classify.features import FeatureSettings
from megalm.corpus.classify.model import Classifier
from megalm.corpus.classify.train import TrainSettings, train_classifier
from megalm.corpus.words import Split
from megalm.errors import UserError
from megalm.rlhf.rewards import Sample, TotalReward
from tests.corpus.classify.texts import labelled, write

SAMPLES = [
    Sample("1+1?", "2", {"answer": 2}),
    Sample("1+1?", "two", {"answer": 2}),
    Sample("1+2?", "so 3", {"answer": 3}, finish_reason="length"),
]


def test_the_total_is_the_weighted_sum_and_parts_are_without_weights():
    reward = TotalReward(
        [
            ExactAnswerConfig(),
            FormatConfig(pattern=r"\d+", weight=0.5),
            StopConfig(weight=0.25),
            FormatConfig(pattern=r"\w+", weight=0, label="a word"),
        ]
    )
    scores = reward(SAMPLES)
    assert scores.parts == {
        "exact_answer": [1.0, 0.0, 1.0],
        "format": [1.0, 0.0, 0.0],
        "stop": [0.0, 0.0, -1.0],
        "a word": [1.0, 1.0, 0.0],
    }
    assert scores.total == [1.5, 0.0, 0.75]
    assert scores.means() == pytest.approx(
        {
            "reward": 0.75,
            "reward_exact_answer": 2 / 3,
            "reward_format": 1 / 3,
            "reward_stop": -1 / 3,
            "reward_a word": 2 / 3,
        }
    )
    assert reward([]).means() == {}


def test_records_are_checked_before_the_run():
    reward = TotalReward([StopConfig(), ExactAnswerConfig()])
    reward.check([({"answer": 1}, "prompts.jsonl line 1")])
    with pytest.raises(UserError, match=r"^prompts\.jsonl line 2: reward `exact_answer`"):
        reward.check([({"answer": 1}, "prompts.jsonl line 1"), ({"anwser": 1}, "prompts.jsonl line 2")])
    with pytest.raises(UserError, match="rlhf.rewards is empty"):
        TotalReward([])


class Lengths:
    """A stand for what a reward model computes elsewhere."""

    def check(self, record: Mapping[str, Any]) -> None:
        pass

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        return [float(len(sample.response)) for sample in samples]


def test_a_model_is_normalised():
    config = ModelRewardConfig(checkpoint="x", mean=1, std=2, label="helpful")
    assert TotalReward([config], {"helpful": Lengths()})(SAMPLES).parts == {"helpful": [0.0, 1.0, 1.5]}


def test_a_reward_that_is_no_number_is_an_error():
    class Broken(Lengths):
        def __call__(self, samples: Sequence[Sample]) -> list[float]:
            return [float("nan")] * len(samples)

    with pytest.raises(RuntimeError, match="`model` gave a sample no finite number"):
        TotalReward([ModelRewardConfig(checkpoint="x")], {"model": Broken()})(SAMPLES)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("classifier")
    settings = TrainSettings(features=FeatureSettings(bucket_bits=12))
    train_classifier([write(folder / "l.jsonl", labelled(80))], folder / "m.safetensors", settings)
    return folder / "m.safetensors"


def test_a_classifier_gives_its_probability(classifier: Path):
    good, bad = "theorem proof lemma evidence", "click buy cheap winner casino prize"
    samples = [Sample(bad, good), Sample("", bad)]
    first, second = TotalReward([ClassifierConfig(path=str(classifier))])(samples).total
    expected = Classifier.load(classifier)
    assert [first, second] == [expected.score(Split(text).tokens, "good") for text in (good, bad)]
    assert first > 0.6 > 0.4 > second
    (both, _) = TotalReward([ClassifierConfig(path=str(classifier), with_prompt=True)])(samples).total
    assert both < first
    (other, _) = TotalReward([ClassifierConfig(path=str(classifier), class_label="bad")])(samples).total
    assert other == pytest.approx(1 - first, abs=2e-6)


def test_a_classifier_that_is_missing_or_lacks_the_label_is_refused(classifier: Path, tmp_path: Path):
    with pytest.raises(UserError, match="does not exist"):
        TotalReward([ClassifierConfig(path=str(tmp_path / "none"))])
    with pytest.raises(UserError, match="no label 'great'"):
        TotalReward([ClassifierConfig(path=str(classifier), class_label="great")])
