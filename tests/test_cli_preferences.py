"""The commands on preferences: what they print, and one line and code 2 for a user's mistake."""

import json
from pathlib import Path

import pytest

from megalm import cli
from megalm.testing import run_distributed
from tests.chats import make_tokenizer
from tests.preferences import make_pairs, preference_data, preference_run, write_records
from tests.test_cli import mistake
from tests.train.runs import train_in_world


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preferences")
    make_tokenizer(folder)
    pairs = make_pairs(30)
    write_records(folder / "pairs.jsonl", [*pairs, pairs[0], {**pairs[1], "rejected": ""}])
    return folder


def build(folder: Path, *more: str) -> list[str]:
    paths = [str(folder / "pairs.jsonl"), "--tokenizer", str(folder / "tokenizer"), "-o", str(folder / "cli")]
    return ["dataset", "build-preferences", *paths, "--chat-template", "chatml", *more]


def test_building_tells_counts_and_what_was_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(build(folder, "--splits", "80,20")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{folder}/cli_train  ") and " pairs  " in lines[0] and "longest" in lines[0]
    assert lines[2:] == [
        f"left out, empty_answer: 1 ({folder}/pairs.jsonl line 32)",
        f"left out, copy: 1 ({folder}/pairs.jsonl line 31)",
    ]
    assert "exists; choose another prefix" in mistake(capsys, *build(folder))
    assert cli.main(build(folder, "--splits", "1", "--overwrite", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["train"]["documents"] == 30
    wrong = mistake(capsys, *build(folder, "--max-length", "8", "--overwrite"))
    assert "all of them: 30 too_long" in wrong and "--max-rejected" in wrong


def command(*arguments: str) -> int:
    return cli.main(arguments)


def test_scoring_prints_a_reward_for_each_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = preference_data(tmp_path, make_pairs(20))
    short = ("train.steps=1", "train.eval_interval=0", "optimizer.warmup_steps=0", "logging.plot=false")
    train_in_world(1, preference_run("reward", tmp_path / "run", prefix, *short))
    file, out = write_records(tmp_path / "new.jsonl", make_pairs(3, seed=1)), tmp_path / "rewards.jsonl"
    assert run_distributed(
        command, 1, "score", str(tmp_path / "run"), "--file", str(file), "-o", str(out)
    ) == [0]
    scores = [json.loads(line) for line in out.read_text().splitlines()]
    assert [set(score) for score in scores] == [{"chosen_reward", "rejected_reward"}] * 3
    assert "no answer given" in mistake(capsys, "score", "run")
    assert "give the prompt with --prompt" in mistake(capsys, "score", "run", "--text", "x")
    assert "no such file" in mistake(capsys, "score", "run", "--file", str(tmp_path / "none.jsonl"))
    assert "--batch-size is 0" in mistake(capsys, "score", "run", "--file", str(file), "--batch-size", "0")
