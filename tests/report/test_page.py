"""The page: one file, no scripts, nothing loaded, nothing of a run's text becomes markup, and the numbers are in it."""

import json

import pytest
from lxml import etree, html

from megalm.report.page import draw_page
from megalm.report.run import read_runs
from tests.report.runs import lines_of, start_line, step_line, write_run

HOSTILE = "</pre></svg><script>alert(1)</script><img src=x onerror=alert(2)>\" onload='y' {{ 7*7 }} &amp; \x00\ud800"
RL = {
    "task": "ppo",
    "run": {"dir": "x", "load": "base"},
    "rlhf": {"prompts": [{"path": "p"}], "rewards": [{"name": "length", "target": 4}]},
}


def rl_line(step, **more):
    seconds = {"generate_seconds": 1.0, "score_seconds": 0.5, "train_seconds": 2.0, "samples_per_second": 8.0}
    figures = {
        "reward": 0.1 * step,
        "reward_length": -0.5,
        "kl": 0.01 * step,
        "entropy": 3.0,
        "value_loss": 0.2,
    }
    return step_line(step, **seconds, **figures, explained_variance=0.3, **more)


def drawn(*paths):
    page = draw_page(read_runs(paths))
    tree = html.document_fromstring(page.replace("<!doctype html>", ""))
    return page, tree


def titles(tree):
    return [caption.text.strip() for caption in tree.iter("figcaption")]


def check_inert(tree):
    """Nothing in the page runs, or is loaded from anywhere."""
    tags = {node.tag for node in tree.iter() if isinstance(node.tag, str)}
    assert not tags & {
        "script",
        "img",
        "iframe",
        "object",
        "embed",
        "link",
        "base",
        "form",
        "foreignobject",
        "image",
    }
    for node in tree.iter(etree.Element):
        for name, value in node.attrib.items():
            assert not name.lower().startswith("on") and name not in ("src", "srcset", "style")
            assert name != "href" or value.startswith("#")
    (policy,) = (node for node in tree.iter("meta") if node.get("http-equiv"))
    assert "default-src 'none'" in policy.get("content")


def test_texts_of_a_run_are_inert_wherever_they_stand(tmp_path):
    answer = {"step": 1, "prompt": HOSTILE, "answer": HOSTILE, "reward": 1.0, "rewards": {HOSTILE: 1.0}}
    sample = {
        "step": 1,
        "prompt": HOSTILE,
        "answer": HOSTILE,
        "references": [HOSTILE],
        "finish_reason": HOSTILE,
    }
    confusion = {"step": HOSTILE, "labels": [HOSTILE, "b"], "confusion": [[1, 2], [3, 4]]}
    confusion["classes"] = {HOSTILE: {"f1": 0.5}}
    lineage = {
        "data": {HOSTILE: HOSTILE},
        "parent": HOSTILE,
        "tokenizer": HOSTILE,
        "megalm": HOSTILE,
    }
    directory = write_run(
        tmp_path / "<script>alert(3)</script>",
        start_line(device=HOSTILE, layout=HOSTILE),
        rl_line(1, **{HOSTILE: 2.0}) | {"step": 1},
        {"step": 1, f"valid_{HOSTILE}": 0.5},
        {"step": 1, "event": f"alarm: {HOSTILE}"},
        config={"data": {"train": [{"path": "<script>alert(4)</script>"}]}},
        lineage=json.dumps(lineage),
        classification=json.dumps(confusion),
        rollouts=lines_of(json.loads(json.dumps(answer))).encode("utf-8", "replace").decode(),
        samples=json.dumps(sample) + "\n",
    )
    page, tree = drawn(directory)
    check_inert(tree)
    assert "<script" not in page and "{{ 7*7 }}" in page
    shown = "".join(tree.itertext())
    assert shown.count("<script>alert(1)</script>") >= 10  # as text, in every place


def test_several_runs_share_charts_by_task_with_a_colour_each(tmp_path):
    paths = [
        write_run(
            tmp_path / "a", start_line(), *map(step_line, range(1, 30)), {"step": 29, "valid_loss": 0.4}
        ),
        write_run(tmp_path / "b", start_line(), *map(step_line, range(1, 20))),
        write_run(tmp_path / "rl", start_line(), *map(rl_line, range(1, 20)), config=RL),
    ]
    _, tree = drawn(*paths)
    check_inert(tree)
    names = titles(tree)
    assert names.count("Loss") == 2  # of tokens, and of the policy
    expected = [
        "Reward",
        "Reward: length",
        "KL of answers from the reference",
        "Entropy of the policy",
        "Value loss",
    ]
    expected += [
        "Explained variance of returns",
        *(f"Answers a second: {phase}" for phase in ("generate", "score", "train")),
    ]
    assert set(expected) <= set(names)
    loss = next(figure for figure in tree.iter("figure") if figure.find("figcaption").text.strip() == "Loss")
    lines = [group.get("class") for group in loss.iter("g")]
    assert sorted(lines) == ["dots run-0", "line run-0", "line run-1", "raw run-0", "raw run-1"]
    rows = [["".join(cell.itertext()).strip() for cell in row] for row in loss.iter("tr")][1:]
    assert [row[1:4] for row in rows] == [["29", "10", "0.3448"], ["1", "0.4", "0.4"], ["19", "10", "0.5263"]]


def test_a_figure_nobody_knows_is_drawn_behind_the_others(tmp_path):
    _, tree = drawn(write_run(tmp_path / "run", start_line(), step_line(1, new_figure=3.0)))
    details = [node for node in tree.iter("details") if "other figures" in (node.find("summary").text or "")]
    assert "new figure" in [caption.text_content().strip() for caption in details[0].iter("figcaption")]


@pytest.mark.parametrize(
    "lines", [[], [start_line()], [start_line(), step_line(1)], [step_line(1, loss=None)]]
)
def test_a_run_that_has_just_begun_has_a_page(tmp_path, lines):
    _, tree = drawn(write_run(tmp_path / "run", *lines))
    check_inert(tree)
    assert "100 steps" in tree.text_content()


def test_alarms_stand_before_other_notices_and_damage_is_told(tmp_path):
    events = [{"step": 3, "event": "checkpoint of step 3 saved"}, {"step": 4, "event": "alarm: the KL is 9"}]
    directory = write_run(tmp_path / "run", start_line(), *events, metrics="", reward="{")
    (directory / "metrics.jsonl").write_text("broken\n" + lines_of(start_line(), *events))
    (directory / "config.yaml").write_text("model: [")
    _, tree = drawn(directory)
    alarms = ["".join(node.itertext()) for node in tree.iter() if node.get("class") == "alarm"]
    assert any("step 4 alarm: the KL is 9" in alarm for alarm in alarms)
    assert all("checkpoint of step 3" not in alarm for alarm in alarms)
    assert any("metrics.jsonl: 1 lines" in alarm for alarm in alarms)
    assert any("config.yaml" in alarm for alarm in alarms) and any("reward.json" in alarm for alarm in alarms)


def test_calibration_and_confusion_are_shown_where_they_are_recorded(tmp_path):
    reward = {
        "step": 5,
        "accuracy_low": 0.6,
        "accuracy_high": 0.8,
        "bins": [[10, 0.6, 0.7], [0, 0, 0], [4, 0.9, 0.75]],
    }
    classes = {"step": 5, "labels": ["a", "b"], "confusion": [[7, 1], [2, 6]], "classes": {"a": {"f1": 0.8}}}
    directory = write_run(
        tmp_path / "run",
        {"step": 5, "valid_accuracy": 0.7},
        reward=json.dumps(reward),
        classification=json.dumps(classes),
    )
    _, tree = drawn(directory)
    text = " ".join(tree.text_content().split())
    assert "95% interval 0.600 to 0.800" in text
    (picture,) = (node for node in tree.iter("svg") if "share of pairs" in "".join(node.itertext()))
    assert len(list(picture.iter("circle"))) == 2  # the empty bin is none
    assert [cell.text for cell in tree.iter("td") if "heat" in cell.get("class", "")] == ["7", "1", "2", "6"]
