"""`megalm report`: real runs, and a user's mistakes in one line."""

import json

import pytest
from lxml import html

from megalm import cli
from megalm.report.make import make_report
from megalm.report.run import MOST_RUNS, names_of
from tests.report.runs import lines_of, start_line, step_line, write_run
from tests.rlhf.runs import learn_in_world, make_base, rl_config
from tests.train.runs import run_config, train_in_world, write_tokens


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Real runs: pretraining, and PPO of a random model."""
    folder = tmp_path_factory.mktemp("runs")
    data = write_tokens(tmp_path_factory.mktemp("data"))
    train_in_world(1, run_config(folder / "pretrained", data, "train.steps=4", "train.eval_interval=2"))
    base = make_base(tmp_path_factory.mktemp("base"))
    learn_in_world(1, rl_config(folder / "ppo", base, "ppo", "train.steps=2", "train.eval_interval=1"))
    return folder


def mistake(capsys, *arguments):
    assert cli.main(["report", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("megalm: error: ") and err.count("\n") == 1
    return err


def test_real_runs_side_by_side(trained, tmp_path, capsys):
    page = tmp_path / "new" / "both.html"
    assert (
        cli.main(["report", str(trained / "pretrained"), str(trained / "ppo"), "-o", str(page), "--json"])
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told["runs"] == {"pretrained": {"step": 4, "task": "pretrain"}, "ppo": {"step": 2, "task": "ppo"}}
    tree = html.parse(str(page)).getroot()
    charts = {caption.text_content().strip() for caption in tree.iter("figcaption")}
    wanted = {
        "Loss",
        "Gradient norm",
        "Learning rate",
        "Reward",
        "Value loss",
        "Explained variance of returns",
    }
    wanted |= {
        "KL of answers from the reference",
        "Entropy of the policy",
        "Length of answers",
        "Gap of rollout and training",
    }
    wanted |= {"Ratios clipped from above", "Answers a second: generate", "Perplexity"}
    assert wanted <= charts
    text = tree.text_content()
    rollouts = [json.loads(line) for line in (trained / "ppo" / "rollouts.jsonl").read_text().splitlines()]
    assert rollouts[0]["answer"].split()[0] in text and "Best answers" in text and "task" in text


def test_page_and_card_of_one_run_need_no_output(trained, tmp_path):
    made = make_report([trained / "ppo"], card=tmp_path / "card.md")
    assert made["report"] == str(trained / "ppo" / "report.html")
    card = (tmp_path / "card.md").read_text()
    assert "format (weight 1), length (weight 0.5)" in card and "**weights from**: " in card


def test_a_run_that_goes_on_meanwhile_has_a_page_each_time(tmp_path):
    directory = write_run(tmp_path / "run", start_line())
    whole = lines_of(*map(step_line, range(1, 4)))
    for end in range(0, len(whole), 37):
        (directory / "metrics.jsonl").write_text(whole[:end])
        assert make_report([directory])["runs"]["run"]["step"] == whole[:end].count("\n")


def test_mistakes_are_one_line(tmp_path, capsys):
    run = write_run(tmp_path / "run", start_line())
    other = write_run(tmp_path / "other", start_line())
    (tmp_path / "empty").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text("{}")
    page = ("-o", tmp_path / "page.html")
    assert "no such run directory" in mistake(capsys, tmp_path / "absent", *page)
    assert "no such run directory" in mistake(capsys, run / "metrics.jsonl", *page)
    assert "neither metrics.jsonl nor lineage.json" in mistake(capsys, tmp_path / "empty", *page)
    assert "name its run directory" in mistake(capsys, tmp_path / "model", *page)
    assert "named twice" in mistake(capsys, run, tmp_path / "empty" / ".." / "run", *page)
    assert "--output FILE.html" in mistake(capsys, run, other)
    assert "--card" in mistake(capsys, run, other, "--card", tmp_path / "card.md", *page)
    assert "is a directory" in mistake(capsys, run, "-o", tmp_path)
    assert f"at most {MOST_RUNS}" in mistake(capsys, *[run] * (MOST_RUNS + 1), *page)
    assert "RUN" in mistake(capsys)
    assert not (tmp_path / "page.html").exists()


def test_names_are_as_much_of_the_paths_as_tells_them_apart(tmp_path):
    a, b, c = tmp_path / "x" / "run", tmp_path / "y" / "run", tmp_path / "y" / "other"
    assert names_of([a]) == ["run"] and names_of([a, c]) == ["run", "other"]
    assert names_of([a, b]) == ["x/run", "y/run"]
