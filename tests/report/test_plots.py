"""`megalm report --plots`: a file for each chart, with the runs' colours and their numbers in it."""

import re

import pytest
from matplotlib import image

from megalm import cli
from megalm.report.plots import COLOURS, write_plots
from megalm.report.run import read_runs
from tests.report.runs import start_line, step_line, write_evaluation, write_run
from tests.report.test_page import HOSTILE, RL, rl_line


def test_each_chart_is_a_picture(tmp_path, capsys):
    runs = [
        write_run(
            tmp_path / name, start_line(), *map(step_line, range(1, last)), {"step": 9, "valid_loss": 2.0}
        )
        for name, last in (("a", 30), ("b", 20))
    ]
    write_evaluation(
        runs[0] / "evaluation" / "step_00000010", {"arc": [1.0, 0.0] * 10, "piqa": [1.0]}, chance=0.25
    )
    arguments = [*map(str, runs), "-o", str(tmp_path / "page.html"), "--plots", str(tmp_path / "plots")]
    assert cli.main(["report", *arguments]) == 0
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    figures = {"loss", "lr", "grad_norm", "evaluation"}
    assert {f"{name}.{form}" for name in figures for form in ("png", "svg")} <= names
    assert image.imread(tmp_path / "plots" / "loss.png").shape[2] == 4
    drawn = (tmp_path / "plots" / "loss.svg").read_text()
    assert all(colour in drawn for colour in COLOURS[:2]) and COLOURS[2] not in drawn
    assert len(re.findall(r'id="line2d_\d+"', drawn)) > 4


def test_kinds_of_runs_have_files_of_their_own_and_names_are_safe(tmp_path):
    figures = {f"{HOSTILE}/../x": 2.0}
    runs = [
        write_run(tmp_path / "a", start_line(), *map(step_line, range(1, 5))),
        write_run(tmp_path / "$\\frac$ _", start_line(), rl_line(1, **figures), rl_line(2), config=RL),
    ]
    write_evaluation(runs[1] / "evaluation" / "step_00000010", {"$\\frac$": [1.0, 0.0]})
    written = write_plots(read_runs(runs), tmp_path / "plots")
    assert {path.parent for path in written} == {tmp_path / "plots"}
    names = {path.name for path in written}
    assert {"pretrain_loss.png", "reinforcement_learning_loss.png", "reinforcement_learning_kl.svg"} <= names


@pytest.mark.parametrize("inside", [False, True])
def test_a_file_in_the_way_is_told(tmp_path, capsys, inside):
    run = write_run(tmp_path / "run", start_line(), step_line(1))
    (tmp_path / "plots").write_text("")
    place = tmp_path / "plots" / "x" if inside else tmp_path / "plots"
    assert cli.main(["report", str(run), "--plots", str(place)]) == 2
    assert "directory" in capsys.readouterr().err
