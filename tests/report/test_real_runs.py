"""Reports of real runs: the charts, tables and cards have what training writes."""

import json

import pytest
from lxml import html

from megalm import cli
from megalm.html.page import printable
from megalm.report.make import make_report
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
    assert "Best answers" in text
    # a random model writes what no page can hold
    shown = {(pre.text or "").strip() for pre in tree.iter("pre")}
    for line in rollouts:
        if line["step"] == 1 and line["answer"].strip():
            assert {line["prompt"], printable(line["answer"]).strip()} <= shown


def test_page_and_card_of_one_run_need_no_output(trained, tmp_path):
    made = make_report([trained / "ppo"], card=tmp_path / "card.md")
    assert made["report"] == str(trained / "ppo" / "report.html")
    card = (tmp_path / "card.md").read_text()
    assert "format (weight 1), length (weight 0.5)" in card and "**weights from**: " in card
