"""Scores of `megalm eval` in reports and cards: of a run's checkpoints, and of other models beside them."""

import json

import pytest
from lxml import html

from megalm import cli
from megalm.errors import UserError
from megalm.report.card import write_card
from megalm.report.evaluations import MOST_COLUMNS, scores_of
from megalm.report.page import draw_page
from megalm.report.run import read_runs
from tests.report.runs import start_line, write_evaluation, write_run
from tests.report.test_page import HOSTILE, check_inert

WRONG, RIGHT = [0.0] * 30, [1.0] * 10


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", start_line())


def test_checkpoints_of_a_run_and_other_models_stand_side_by_side(tmp_path, run):
    early = write_evaluation(run / "evaluation" / "step_00000010", {"arc": RIGHT + WRONG}, chance=0.25)
    late = write_evaluation(
        run / "evaluation" / "step_00000020", {"arc": RIGHT * 2 + WRONG[10:]}, chance=0.25
    )
    small = write_evaluation(tmp_path / "int4", {"arc": RIGHT + WRONG, "new": RIGHT})
    scores = scores_of(read_runs([run]), [small])
    assert [column.folder for column in scores.columns] == [early, late, small]
    assert [column.style for column in scores.columns] == ["run-0", "run-0", ""]
    arc, new = scores.rows
    assert (arc.task, arc.metric, arc.questions, arc.chance) == ("arc", "acc", 40, "0.2500")
    first, second, third = arc.cells
    assert first.score == "0.2500" and first.is_chance and not first.change
    assert second.score == "0.5000" and not second.is_chance and second.verdict == "gain"
    assert second.change.startswith("+0.25 (+0.1")
    assert third.change == "+0 (+0 to +0)" and third.verdict == ""  # the same answers to the same questions
    assert new.cells[:2] == [None, None] and new.cells[2].score == "1.0000"
    text = html.document_fromstring(draw_page(read_runs([run]), [small])).text_content()
    assert "near chance" in text and "+0.25 (+0.1" in text and ", gain" in text


def test_of_several_runs_the_last_checkpoint_of_each_is_compared(tmp_path, run):
    other = write_run(tmp_path / "other", start_line())
    for step in (10, 20):
        write_evaluation(run / "evaluation" / f"step_{step:08}", {"arc": RIGHT * 3 + WRONG[20:]})
    write_evaluation(other / "evaluation" / "step_00000005", {"arc": RIGHT + WRONG})
    scores = scores_of(read_runs([run, other]))
    assert [column.name for column in scores.columns] == ["run step_00000020", "other step_00000005"]
    assert scores.older == 1 and scores.rows[0].cells[1].verdict == "loss"


def test_groups_are_told_apart(run):
    groups = {"anatomy": {"questions": 3, "value": 0.5, "low": 0.0, "high": 1.0}, "law": "damaged"}
    write_evaluation(run / "evaluation" / "step_00000010", {"mmlu": RIGHT}, groups=groups)
    [row] = scores_of(read_runs([run])).rows
    assert [(group.task, group.questions) for group in row.groups] == [("anatomy", 3), ("law", None)]
    assert row.groups[0].cells[0].interval == "0.0000 to 1.0000" and row.groups[1].cells == [None]
    assert "mmlu by groups" in html.document_fromstring(draw_page(read_runs([run]))).text_content()


def test_names_of_tasks_are_inert_and_damage_is_told(run):
    folder = write_evaluation(run / "evaluation" / "step_00000010", {"arc": RIGHT})
    results = (folder / "results.json").read_text()
    (folder / "results.json").write_text(results.replace('"arc"', json.dumps(HOSTILE)))
    (run / "evaluation" / "step_00000020").mkdir()
    (run / "evaluation" / "step_00000020" / "results.json").write_text("{")
    (run / "evaluation" / "step_00000030").mkdir()  # being asked
    page = draw_page(read_runs([run]))
    tree = html.document_fromstring(page.replace("<!doctype html>", ""))
    check_inert(tree)
    assert "<script" not in page
    told = [node.text_content() for node in tree.iter("p") if "alarm" in (node.get("class") or "")]
    assert told == ["Could not be read: evaluation/step_00000020: no results"]


def test_results_of_another_shape_are_no_error(run):
    folder = write_evaluation(run / "evaluation" / "step_00000010", {"arc": RIGHT})
    for tasks in ({"a": 3}, {"a": {}}, {"a": {"main": "acc", "metrics": {"acc": {"value": "x"}}}}):
        (folder / "results.json").write_text(json.dumps({"tasks": tasks, "averages": [], "model": 4}))
        draw_page(read_runs([run]))
        write_card(read_runs([run])[0])


def test_the_card_has_the_scores_of_the_last_checkpoint(run):
    assert "## Benchmarks" not in write_card(read_runs([run])[0])
    write_evaluation(run / "evaluation" / "step_00000010", {"arc": WRONG})
    write_evaluation(run / "evaluation" / "step_00000020", {"arc": RIGHT + WRONG}, chance=0.25)
    card = write_card(read_runs([run])[0])
    assert "- **of checkpoint**: step\\_00000020" in card
    assert "| arc | acc | 0.2500 | 0." in card and card.count("| arc |") == 1
    assert "**benchmarks**" not in card


def test_bias_and_safety_stand_apart(run):
    place = run / "evaluation" / "step_00000010"
    write_evaluation(place, {"crows_pairs": RIGHT}, kind="pairs")
    results = json.loads((place / "results.json").read_text())
    entry = results["tasks"]["crows_pairs"]
    gap = entry["metrics"] | {"acc_gap": entry["metrics"]["acc"]}
    results["tasks"] |= {
        "xstest": entry | {"kind": "refusal"},
        "winobias": entry | {"kind": "choice", "metrics": gap},
        "arc": entry | {"kind": "choice"},
    }
    (place / "results.json").write_text(json.dumps(results))
    found = scores_of(read_runs([run])).by_topic
    assert [(topic, [row.task for row in rows if row.task]) for topic, rows in found] == [
        ("Benchmarks", ["arc"]),
        ("Bias", ["crows_pairs", "winobias"]),
        ("Safety", ["xstest"]),
    ]
    card = write_card(read_runs([run])[0])
    heads = [line[3:] for line in card.splitlines() if line.startswith("## ")]
    assert heads[-4:] == ["Benchmarks", "Bias", "Safety", "Limits"] and "**bias**" not in card
    tree = html.document_fromstring(draw_page(read_runs([run])))
    assert {"Benchmarks", "Bias", "Safety"} <= {node.text_content() for node in tree.iter("h3")}


def test_what_cannot_be_shown_is_one_line(tmp_path, run, capsys):
    (tmp_path / "empty").mkdir()
    assert cli.main(["report", str(run), "--evaluation", str(tmp_path / "empty")]) == 2
    assert "megalm eval wrote to" in capsys.readouterr().err
    others = [write_evaluation(tmp_path / f"m{n}", {"arc": RIGHT}) for n in range(MOST_COLUMNS + 1)]
    with pytest.raises(UserError, match=f"at most {MOST_COLUMNS}"):
        scores_of(read_runs([run]), others)
