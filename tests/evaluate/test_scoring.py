"""Figures of questions worked out by hand, intervals that hold what they say, the unbiased pass@k."""

import itertools
import math

import numpy as np
import pytest
from sacrebleu import corpus_bleu, corpus_chrf

from megalm.evaluate.bootstrap import ratio_score
from megalm.evaluate.corpus_scores import corpus_score
from megalm.evaluate.encode import Likelihood, Pair, windows
from megalm.evaluate.figures import choice_figures, document_figures, pass_at, text_figures
from megalm.evaluate.kinds import ACCURACIES
from megalm.evaluate.question import Prompt, Question
from megalm.evaluate.results import average_of
from megalm.evaluate.scoring import chance_of, scores
from megalm.evaluate.task import Average, Member, Task


def question(options: list[str], gold: list[int], references: list[str] | None = None) -> Question:
    return Question(0, "line 1", [Prompt("q")], options, gold, references or [])


def test_options_are_compared_as_they_are_and_by_character_byte_and_token() -> None:
    options = ["ab", "éééé", "abcdefgh"]
    pairs = [Pair((1,), (2,) * tokens) for tokens in (1, 4, 2)]
    found = [Likelihood(logprob, False) for logprob in (-2.0, -3.0, -7.0)]
    # by character 1, 0.75, 0.875; by byte 1, 0.375, 0.875; by token 2, 0.75, 3.5
    figures = choice_figures(question(options, [1]), pairs, found, [*ACCURACIES, "probability", "macro_f1"])
    weights = [math.exp(one.logprob) for one in found]
    assert figures == pytest.approx(
        {
            "acc": 0,
            "acc_norm": 1,
            "acc_bytes": 1,
            "acc_tokens": 1,
            "gold": 1,
            "called": 0,
            "probability": weights[1] / sum(weights),
        }
    )
    # by character 1 and 0.9, by byte 1 and 1.8: é is two of them
    two = choice_figures(
        question(["ééééééééé", "a"], [0]),
        pairs[:2],
        [Likelihood(-9.0, False), Likelihood(-0.9, False)],
        ACCURACIES,
    )
    assert two == {"acc": 0, "acc_norm": 0, "acc_bytes": 1, "acc_tokens": 0}


def test_several_right_options_count_each() -> None:
    found = [Likelihood(math.log(p), False) for p in (0.1, 0.2, 0.3)]
    pairs = [Pair((1,), (2,))] * 3
    asked = question(["a", "b", "c"], [0, 1])
    assert choice_figures(asked, pairs, found, ["acc", "probability"]) == pytest.approx(
        {"acc": 0, "probability": 0.5}
    )


def task(**values: object) -> Task:
    return Task.model_validate({"name": "t", "data": "t.jsonl", **values})


@pytest.mark.parametrize(
    ("extract", "text", "references", "right"),
    [
        ("last_number", "so 3 + 4 = 7 apples", ["7"], 1),
        ("last_number", "it costs $1,234.0", ["1234"], 1),
        ("last_number", "no idea", ["7"], 0),
        ("hashes", "7 or so\n#### 8", ["#### 8"], 1),
        ("boxed", r"\boxed{7}", [r"\boxed{7.0}"], 1),
    ],
)
def test_numbers_are_found_and_compared_as_numbers(
    extract: str, text: str, references: list[str], right: float
) -> None:
    asked = task(kind="generation", prompt="p", answer="a", extract=extract, metrics=["number"])
    assert text_figures(asked, question([], [], references), text) == {"number": right}


def test_the_first_line_of_an_answer_counts() -> None:
    asked = task(
        kind="generation", prompt="p", answer="a", extract="first_line", metrics=["exact_match", "f1"]
    )
    figures = text_figures(asked, question([], [], ["The red cat", "dog"]), " red cat!\nQuestion: more")
    assert figures == {"exact_match": 1, "f1": 1}


def test_pass_at_k_is_the_chance_of_a_right_one_among_k() -> None:
    for samples, right, k in itertools.product(range(1, 6), range(6), range(1, 6)):
        if right <= samples and k <= samples:
            drawn = list(itertools.combinations([True] * right + [False] * (samples - right), k))
            assert pass_at(k, samples, right) == pytest.approx(sum(map(any, drawn)) / len(drawn))


def test_perplexities_divide_the_sum_over_all_documents() -> None:
    asked = task(
        kind="perplexity",
        text="t",
        metrics=["perplexity", "bits_per_byte", "byte_perplexity", "word_perplexity"],
    )
    texts = ["ab cd", "é"]
    pairs = [Pair((0,), (1, 2, 3)), Pair((0,), (4,))]
    figures = [
        document_figures(text, [pair], [Likelihood(logprob, False)])
        for text, pair, logprob in zip(texts, pairs, (-6.0, -2.0), strict=True)
    ]
    found = scores(asked, [question([text], []) for text in texts], figures, texts, 0)
    assert found["perplexity"].value == pytest.approx(math.exp(8 / 4))
    assert found["byte_perplexity"].value == pytest.approx(math.exp(8 / 7))
    assert found["bits_per_byte"].value == pytest.approx(8 / 7 / math.log(2))
    assert found["word_perplexity"].value == pytest.approx(math.exp(8 / 3))


def test_the_interval_is_that_of_a_mean_and_shrinks_with_the_questions() -> None:
    random = np.random.default_rng(0)
    for count in (50, 400):
        values = (random.random(count) < 0.3).astype(float)
        score = ratio_score(values.tolist(), [1.0] * count, seed=3)
        half = 1.96 * values.std() / math.sqrt(count)
        assert score.value == values.mean()
        assert score.low is not None and score.high is not None
        assert (score.high - score.low) / 2 == pytest.approx(half, rel=0.15)
    assert ratio_score([1.0], [1.0], 0).low is None


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    random, held = np.random.default_rng(1), 0
    for trial in range(200):
        score = ratio_score((random.random(100) < 0.25).astype(float).tolist(), [1.0] * 100, seed=trial)
        assert score.low is not None and score.high is not None
        held += score.low <= 0.25 <= score.high
    assert 180 <= held <= 199


def test_bleu_and_chrf_are_sacrebleus_with_an_interval_around_them() -> None:
    texts = ["the cat sat on the mat today", "it rains a lot here", "no match", "a stitch in time saves nine"]
    references = [
        ["the cat sat on the mat"],
        ["it rains here", "it rains a lot here"],
        ["else"],
        ["a stitch in time"],
    ]
    streams = [[one[0] for one in references], [one[1] if len(one) > 1 else None for one in references]]
    for name, theirs in (("bleu", corpus_bleu), ("chrf", corpus_chrf)):
        score = corpus_score(name, texts, references, seed=0)
        assert score.value == pytest.approx(theirs(texts, streams).score)
        assert score.low is not None and score.high is not None and score.low < score.value < score.high


def test_chance_is_the_mean_share_of_right_options() -> None:
    asked = task(kind="choice", prompt="p", choices="c", answer="a", metrics=["acc"])
    questions = [question(["a", "b"], [0]), question(["a", "b", "c", "d"], [1])]
    assert chance_of(asked, questions, "acc") == pytest.approx(3 / 8)
    assert chance_of(asked.model_copy(update={"chance": 0.6}), questions, "acc") == 0.6


def test_an_average_is_of_centred_scores() -> None:
    def entry(value: float, chance: float | None) -> dict[str, object]:
        return {
            "main": "acc",
            "chance": chance,
            "metrics": {"acc": {"value": value, "low": value - 0.1, "high": value + 0.1}},
        }

    average = Average(name="core", average=[Member(task="a"), Member(task="b"), Member(task="c", chance=0.6)])
    members = list(zip(average.average, "abc", strict=True))
    found = average_of(
        average, members, {"a": entry(0.625, 0.25), "b": entry(0.2, None), "c": entry(0.5, 0.5)}
    )
    assert found["value"] == pytest.approx((0.5 + 0.2 - 0.25) / 3)
    half = math.sqrt((0.1 / 0.75) ** 2 + 0.1**2 + (0.1 / 0.4) ** 2) / 3
    assert found["high"] - found["value"] == pytest.approx(half)


@pytest.mark.parametrize(("width", "stride"), [(4, 4), (4, 1), (4, 3), (1, 1), (50, 7)])
def test_windows_predict_each_token_once_with_as_much_before_it_as_fits(width: int, stride: int) -> None:
    ids = list(range(1, 12))
    whole = [0, *ids]
    told = []
    for context, continuation in windows(ids, 0, width, stride):
        assert 1 <= len(context) and len(context) + len(continuation) - 1 <= width
        place = continuation[0]
        assert list(context) == whole[place - len(context) : place]
        assert len(continuation) <= (stride if told else width)
        told += continuation
    assert told == ids
