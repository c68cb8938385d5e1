"""Task `reward` from preferences to rewards: it learns, validates on each pair once, alike under every layout, and scores."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megalm.checkpoint import find_checkpoint
from megalm.config.rewards import ModelRewardConfig, StopConfig
from megalm.dataset.sidecar import read_sidecar
from megalm.errors import UserError
from megalm.generate.answers import Scored, read_answers
from megalm.generate.request import ClassifyRequest, GenerateRequest, ScoreRequest
from megalm.testing import run_distributed
from tests.preferences import make_pairs, preference_data, preference_run, validation, write_records
from tests.train.runs import PP2, TP2, events, step_lines, train_in_world

CP2 = "parallel.context_parallel_size=2"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preference_data(tmp_path_factory.mktemp("pairs"), make_pairs(200))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, pairs: Path) -> Path:
    directory = tmp_path_factory.mktemp("trained")
    train_in_world(
        1,
        preference_run("reward", directory, pairs, "reward.center_weight=0.01", "batch.micro_batch_size=16"),
    )
    return directory


def test_which_answer_is_better_is_learned_and_every_pair_validated_once(trained: Path, pairs: Path) -> None:
    found = validation(trained)
    held_out = (read_sidecar(f"{pairs}_valid") or {})["documents"]
    assert found["valid_accuracy"] > 0.95 and found["valid_loss"] < 0.3
    report = json.loads((trained / "reward.json").read_text())
    assert report["pairs"] == held_out and held_out % 16, "the last batch is to be filled up"
    assert report["accuracy"] == found["valid_accuracy"] and report["accuracy_low"] < report["accuracy"]
    assert sum(count for count, _, _ in report["bins"]) == held_out
    assert abs(found["valid_length_correlation"]) < 0.5 and 0 <= found["valid_calibration_error"] < 0.3
    assert (trained / "reward_calibration.png").read_bytes().startswith(b"\x89PNG")
    assert not any("perplexity" in name for name in found)
    last = step_lines(trained)[-1]
    assert last["weight"] == 16, "pairs, not answers"


def test_the_checkpoint_knows_mean_and_spread_of_its_rewards(trained: Path) -> None:
    from megalm.train.reward import reward_moments

    found = validation(trained)
    expected = found["valid_reward_mean"], found["valid_reward_std"]
    assert reward_moments(find_checkpoint(trained)) == expected and expected[1] > 0


def test_reinforcement_learning_normalises_by_them_where_nothing_else_is_given(trained: Path) -> None:
    from megalm.rlhf.scale import scaled

    found = validation(trained)
    given = [
        ModelRewardConfig(checkpoint=str(trained)),
        ModelRewardConfig(checkpoint=str(trained), label="shifted", mean=0.25),
        ModelRewardConfig(checkpoint=str(trained), label="as given", mean=0.0, std=2.0),
        StopConfig(),
    ]
    before = [reward.model_dump() for reward in given]
    rewards, told = scaled(given)
    mean, std = found["valid_reward_mean"], found["valid_reward_std"]
    assert [(one.mean, one.std) for one in rewards[:3]] == [(mean, std), (0.25, std), (0.0, 2.0)]
    assert rewards[2:] == given[2:] and [reward.model_dump() for reward in given] == before
    assert told == [
        f"reward `model`: less {mean:.6g}, over {std:.6g}",
        f"reward `shifted`: less 0.25, over {std:.6g}",
    ]


def score(directory: Path, changes: dict[str, Any]) -> dict[str, Any]:
    from megalm.generate import score as command

    return command.main(ScoreRequest(**{"checkpoint": str(directory), **changes}))


def test_scores_are_those_of_the_validation_under_every_layout(trained: Path, pairs: Path) -> None:
    valid = held_out(pairs)
    (alone,) = run_distributed(score, 1, trained, {"records": valid, "dtype": "fp64"})
    assert alone["accuracy"] == pytest.approx(validation(trained)["valid_accuracy"], abs=1e-12)
    rewards = np.array([list(found.values()) for found in alone["scores"]])
    assert rewards.mean() == pytest.approx(validation(trained)["valid_reward_mean"], abs=1e-3)
    assert rewards.std() == pytest.approx(validation(trained)["valid_reward_std"], rel=1e-3)
    for size in ("tensor_model_parallel_size", "pipeline_model_parallel_size", "batch_size"):
        for found in run_distributed(score, 2, trained, {size: 2, "records": valid, "dtype": "fp64"}):
            for mine, theirs in zip(found["scores"], alone["scores"], strict=True):
                assert mine == pytest.approx(theirs, rel=1e-9)
    single = [Scored([record.conversations[0]], False) for record in valid[:3]]
    (some,) = run_distributed(score, 1, trained, {"records": single, "dtype": "fp64"})
    assert [one["reward"] for one in some["scores"]] == pytest.approx(rewards[:3, 0], rel=1e-9)
    assert "accuracy" not in some and some["truncated"] == 0
    long = read_answers([], "x " * 200, ["a b"])
    (cut,) = run_distributed(score, 1, trained, {"records": long})
    assert cut["truncated"] == 1 and np.isfinite(cut["scores"][0]["reward"])


def held_out(prefix: Path) -> list[Scored]:
    """The pairs of the validation set, by the prompts that lie there."""
    from megalm.dataset.inspect import show
    from megalm.tokenizer import load_tokenizer

    documents = show(f"{prefix}_valid", load_tokenizer(prefix.parent / "tokenizer"), 0, 1000)
    records = read_answers([prefix.parent / "records.jsonl"], None, [])
    by_prompt = {record.conversations[0][0]["content"]: record for record in records}
    prompts = [one["text"].split("user\n")[1].split("<|im_end|>")[0] for one in documents]
    return [by_prompt[prompt] for prompt in prompts]


EXACT = ("precision.dtype=fp64", "train.steps=6", "train.eval_interval=6", "reward.center_weight=0.01")


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory: pytest.TempPathFactory, pairs: Path) -> Path:
    directory = tmp_path_factory.mktemp("exact")
    train_in_world(1, preference_run("reward", directory, pairs, *EXACT))
    return directory


@pytest.mark.parametrize("layout", [(TP2,), (PP2,), (CP2,), ()], ids=["TP2", "PP2", "CP2", "DP2"])
def test_every_layout_learns_and_validates_the_same(
    layout: tuple[str, ...], in_one_process: Path, pairs: Path, tmp_path: Path
) -> None:
    train_in_world(2, preference_run("reward", tmp_path, pairs, *EXACT, *layout))
    assert validation(tmp_path) == pytest.approx(validation(in_one_process), rel=1e-9, abs=1e-12)
    for mine, theirs in zip(step_lines(tmp_path), step_lines(in_one_process), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-9)
    assert validation(tmp_path)["valid_margin"] != 0


def test_deepspeed_learns_the_same(pairs: Path, tmp_path: Path) -> None:
    short = ("train.steps=6", "train.eval_interval=6")
    for name, more in (("ours", ()), ("deepspeed", ("engine=deepspeed", "parallel.zero_stage=2"))):
        train_in_world(2, preference_run("reward", tmp_path / name, pairs, *short, *more))
    found = validation(tmp_path / "deepspeed")
    assert found == pytest.approx(validation(tmp_path / "ours"), rel=1e-3, abs=1e-4)


def test_ratings_are_learned_by_their_squared_error(tmp_path: Path) -> None:
    records = [
        {"prompt": pair["prompt"], "response": pair[which], "rating": 2.0 if which == "chosen" else -1.0}
        for pair in make_pairs(120)
        for which in ("chosen", "rejected")
    ]
    prefix = preference_data(tmp_path, records)
    train_in_world(1, preference_run("reward", tmp_path / "run", prefix))
    found = validation(tmp_path / "run")
    assert found["valid_rmse"] < 0.8 and found["valid_correlation"] > 0.9
    assert found["valid_rmse"] ** 2 == pytest.approx(found["valid_loss"], rel=1e-4)
    assert "valid_accuracy" not in found and 0.7 < found["valid_explained_variance"] < 1


def test_a_language_model_is_taken_over_and_other_uses_are_refused(
    trained: Path, pairs: Path, tmp_path: Path
) -> None:
    from megalm.generate.load import open_model  # imports torch

    short = ("train.steps=1", "train.eval_interval=0", "optimizer.warmup_steps=0")
    train_in_world(1, preference_run("reward", tmp_path / "a", pairs, *short))
    assert "task reward without run.load: the model begins with random weights" in events(tmp_path / "a")
    with pytest.raises(UserError, match="holds a reward model: use `megalm score`"):
        open_model(ClassifyRequest(checkpoint=str(trained), texts=[("x",)]), "classifier")
    with pytest.raises(UserError, match="holds a reward model: use `megalm score`"):
        open_model(GenerateRequest(checkpoint=str(trained), prompts=["x"]), "gpt")
    assert (tmp_path / "a" / "tokenizer" / "chat_template.jinja").exists(), "for whoever scores later"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.sequence_head.outputs=2"], "a reward is one number"),
        (["lora.rank=4", "run.load=x"], "adapters do not train the new head"),
        (["data.packing=drop"], "samples of task `reward` are whole documents"),
        (["model.sequence_head.pooling=first"], "sees no other"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: list[str], message: str, pairs: Path) -> None:
    with pytest.raises(UserError, match=message):
        preference_run("reward", Path("run"), pairs, *overrides)


def test_answers_are_read_from_texts_and_files(tmp_path: Path) -> None:
    found = read_answers([], "Why?", ["No.", "Yes."])
    assert [one.conversations[0][-1]["content"] for one in found] == ["No.", "Yes."]
    rows = [
        {"prompt": "Why?", "chosen": "a", "rejected": "b"},
        {"instruction": "x", "input": "", "output": "y"},
    ]
    file = write_records(tmp_path / "rows.jsonl", rows)
    assert [(len(one.conversations), one.is_pair) for one in read_answers([file], None, [])] == [
        (2, True),
        (1, False),
    ]
    with pytest.raises(UserError, match="give the prompt with --prompt"):
        read_answers([], None, ["a"])
    write_records(file, [*rows, {"prompt": "x"}])
    with pytest.raises(UserError, match=r"rows.jsonl line 3: missing_field"):
        read_answers([file], None, [])
