"""Two evaluations side by side: the difference's interval is that of the questions' own differences, where they are the same."""

import json
from pathlib import Path

import numpy as np
import pytest

from megalm.cli import main
from megalm.errors import UserError
from megalm.evaluate.bootstrap import Score, ratio_score
from megalm.evaluate.compare import changes
from megalm.evaluate.files import FILE_NAME, write_draws
from megalm.evaluate.ideals import is_gain

QUESTIONS = 400


def told(folder: Path, scores: dict[str, Score], questions_hash: str = "same", seed: int = 7) -> Path:
    """What an evaluation writes of a task."""
    entry = {
        "questions_hash": questions_hash,
        "seed": seed,
        "metrics": {name: score.told() for name, score in scores.items()},
    }
    folder.mkdir()
    (folder / FILE_NAME).write_text(json.dumps({"tasks": {"task:5": entry}}))
    write_draws(folder, "task:5", scores)
    return folder


def right(share: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(QUESTIONS) < share).astype(float)


def score(values: np.ndarray, seed: int = 7) -> Score:
    return ratio_score(values.tolist(), [1.0] * len(values), seed)


def test_a_small_gain_on_the_same_questions_is_told_from_chance(tmp_path: Path) -> None:
    first = right(0.5, 0)
    second = first.copy()
    second[np.flatnonzero(first == 0)[:12]] = 1  # what was right stays right
    before, after = told(tmp_path / "before", {"acc": score(first)}), tmp_path / "after"
    told(after, {"acc": score(second)})
    [change] = changes(before, after)
    assert change.paired and change.difference == pytest.approx(12 / QUESTIONS)
    differences = second - first
    half = 1.96 * differences.std(ddof=1) / QUESTIONS**0.5
    assert change.low == pytest.approx(change.difference - half, rel=0.2)
    assert change.high == pytest.approx(change.difference + half, rel=0.2)
    assert change.is_significant and change.is_better
    [back] = changes(after, before)
    assert back.is_better is False
    assert (back.low, back.high) == pytest.approx((-change.high, -change.low))


@pytest.mark.parametrize(("questions_hash", "seed"), [("others", 7), ("same", 8)])
def test_evaluations_of_other_questions_are_compared_by_their_intervals(
    tmp_path: Path, questions_hash: str, seed: int
) -> None:
    first, second = (
        score(np.arange(QUESTIONS) % 2),
        score(np.maximum(np.arange(QUESTIONS) % 2, np.arange(QUESTIONS) < 1), seed),
    )
    [change] = changes(
        told(tmp_path / "before", {"acc": first}),
        told(tmp_path / "after", {"acc": second}, questions_hash, seed),
    )
    assert not change.paired and not change.is_significant and change.is_better is None
    half = 1.96 * (2 * 0.25 / QUESTIONS) ** 0.5
    assert change.high - change.low == pytest.approx(2 * half, rel=0.15)


def test_less_perplexity_is_better(tmp_path: Path) -> None:
    nats = 3 + right(0.5, 0)
    before = told(
        tmp_path / "before", {"perplexity": ratio_score(nats.tolist(), [1.0] * QUESTIONS, 7, np.exp)}
    )
    after = told(
        tmp_path / "after",
        {"perplexity": ratio_score((nats - 0.1).tolist(), [1.0] * QUESTIONS, 7, np.exp)},
    )
    [change] = changes(before, after)
    assert change.difference < 0 and change.is_better


def test_what_is_no_evaluation_is_told(tmp_path: Path) -> None:
    before = told(tmp_path / "before", {"acc": score(right(0.5, 0))})
    for content in (None, "{", "[]", '{"tasks": []}'):
        folder = tmp_path / f"damaged{content}"
        folder.mkdir()
        if content is not None:
            (folder / FILE_NAME).write_text(content)
        with pytest.raises(UserError, match="name the directory that megalm eval wrote to"):
            changes(before, folder)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / FILE_NAME).write_text('{"tasks": {}}')
    with pytest.raises(UserError, match="no task in common"):
        changes(before, tmp_path / "none")


def test_a_single_question_has_no_interval(tmp_path: Path) -> None:
    one = ratio_score([1.0], [1.0], 7)
    [change] = changes(told(tmp_path / "before", {"acc": one}), told(tmp_path / "after", {"acc": one}))
    assert change.low is None and change.is_better is None


@pytest.mark.parametrize(
    ("metric", "before", "after", "gain"),
    [
        ("acc", 0.5, 0.6, True),
        ("perplexity_training", 9.0, 8.0, True),
        ("preference", 0.7, 0.55, True),
        ("preference", 0.55, 0.4, False),
        ("preference", 0.4, 0.6, None),
        ("bias_ambiguous", -0.2, 0.1, True),
        ("acc_gap", 0.1, -0.2, False),
        ("acc_anti", 0.4, 0.5, True),
        ("verbatim_training", 0.1, 0.2, False),
        ("refused_safe", 0.5, 0.2, True),
        ("refused_harmful", 0.5, 0.2, False),
        ("refused", 0.5, 0.2, None),
        ("email", 0.1, 0.0, True),
        ("toxicity_probability", 0.1, 0.2, False),
        ("acc", 0.5, 0.5, None),
    ],
)
def test_what_is_better_is_known_of_every_kind_of_metric(
    metric: str, before: float, after: float, gain: bool | None
) -> None:
    assert is_gain(metric, before, after) is gain


def test_evaluations_are_put_side_by_side_without_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = right(0.5, 0)
    second = first.copy()
    second[np.flatnonzero(first == 0)[:40]] = 1
    before = told(tmp_path / "before", {"preference": score(first), "acc": score(first)})
    after = told(tmp_path / "after", {"preference": score(second), "acc": score(first)})
    assert main(["eval-compare", str(before), str(after), str(before), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["better"] for one in found[str(after)]] == [False, None]
    assert found[str(after)][0]["difference"] == pytest.approx(0.1) and found[str(after)][0]["paired"]
    assert {one["difference"] for one in found[str(before)]} == {0.0}
    assert main(["eval-compare", str(before), str(after)]) == 0
    assert "1 of 2 changes are certain (!)" in capsys.readouterr().out
    assert main(["eval-compare", str(before), str(tmp_path / "absent")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no results of an evaluation" in line
