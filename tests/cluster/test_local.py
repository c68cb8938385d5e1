"""Jobs of this machine: they outlive the command, are followed, stopped, gone on with, and start again after a failure."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from megalm.checkpoint.directory import list_checkpoints
from megalm.cli import main
from megalm.cluster.events import ENDED, FAILED
from megalm.cluster.record import jobs_of
from megalm.cluster.state import find_runs, is_over, state_of
from megalm.watch.stacks import state_of as state_of_process
from tests.cluster.jobs import check_curve, job_events, last_step, ranks_of, saved, until, write_config
from tests.train.runs import TP2, step_lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LOCAL = ("--cluster", "local", "--time", "0:30:00")


@pytest.fixture(autouse=True)
def _no_job_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    for run in find_runs([tmp_path]):
        for job in jobs_of(run):
            if not is_over(state_of(run).job_state or ""):
                main(["runs", "stop", "--now", str(run)])
                assert job


def launch(*arguments: object) -> None:
    """`megalm launch` on this machine, which has to be accepted."""
    assert main(["launch", *map(str, arguments), *LOCAL]) == 0


def wait_for(run: Path, state: str) -> None:
    until(lambda: state_of(run).job_state == state, f"{state} of {run}, which is {state_of(run)}")


def test_a_job_is_followed_told_to_save_and_gone_on_with(tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    launch(write_config(tmp_path), "--processes-per-node", 2, TP2)
    [first] = jobs_of(run)
    until(lambda: last_step(run) > 3, "steps")
    assert main(["launch", str(tmp_path / "run.yaml"), *LOCAL, "--processes-per-node", "2", TP2]) == 2
    assert f"has job {first.id} already" in capsys.readouterr().err
    assert main(["runs", "list", str(tmp_path), "--json"]) == 0
    [listed] = json.loads(capsys.readouterr().out)
    assert (listed["job"], listed["job_state"], listed["starts"]) == (first.id, "RUNNING", 1)
    assert listed["step"] > 3 and listed["loss"] > 0 and listed["seconds_left"] > 0
    assert main(["runs", "stop", str(run)]) == 0
    wait_for(run, "STOPPED")
    before = saved(run)
    assert main(["runs", "resubmit", str(run)]) == 0
    assert len(jobs_of(run)) == 2
    until(lambda: last_step(run) > before + 3, "further steps")
    assert main(["runs", "stop", str(run)]) == 0
    wait_for(run, "STOPPED")
    saved(run)
    check_curve(run, 2, tmp_path / "undisturbed")
    capsys.readouterr()
    assert main(["runs", "logs", str(run)]) == 0
    assert "megalm: stopped: step" in capsys.readouterr().out


def test_a_killed_rank_is_named_and_the_run_goes_on_from_its_last_checkpoint_as_often_as_is_allowed(
    tmp_path: Path, capsys
) -> None:
    run = tmp_path / "run"
    config = write_config(tmp_path, "checkpoint.interval=20")
    launch(config, "--processes-per-node", 2, "--set", "max_restarts=1", TP2)
    until(lambda: len(list_checkpoints(run)) > 0, "a checkpoint")
    for _ in range(2):
        before, failures = last_step(run), len(job_events(run, FAILED))
        os.kill(ranks_of(run)[1], signal.SIGKILL)
        until(lambda count=failures + 1: len(job_events(run, FAILED)) == count, "the failure")
        if not failures:
            until(lambda step=before: last_step(run) > step + 5, "further steps")
    wait_for(run, "FAILED")
    state = state_of(run)
    assert (state.starts, state.failures) == (2, 2)
    assert state.last_failure is not None and "rank 1" in state.last_failure
    assert "killed by SIGKILL" in state.last_failure
    assert state.why == "2 failures, restarts allowed: 1"
    assert main(["runs", "logs", str(run), "--lines", "500"]) == 0
    assert f"failed: rank 1, host {socket.gethostname()}, how killed by SIGKILL" in capsys.readouterr().out
    assert check_curve(run, 2, tmp_path / "undisturbed") > 20


def test_a_wrong_setting_is_not_tried_again(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    launch(config, "run.resume=always")
    wait_for(tmp_path / "run", "FAILED")
    [ended] = job_events(tmp_path / "run", ENDED)
    assert ended["code"] == 2 and "checkpoint" in ended["why"]
    assert not job_events(tmp_path / "run", FAILED)


def test_a_sweep_trains_each_combination(tmp_path: Path, capsys) -> None:
    config = write_config(tmp_path, "train.steps=3", "checkpoint.interval=3")
    launch(config, "--sweep", "optimizer.lr=2e-3", "--sweep", "run.seed=1,2")
    runs = [tmp_path / "run" / f"lr=2e-3,seed={seed}" for seed in (1, 2)]
    assert main(["runs", "wait", *map(str, runs), "--every", "1"]) == 0
    assert [max(line["lr"] for line in step_lines(run)) for run in runs] == [2e-3, 2e-3]
    assert len({line["loss"] for run in runs for line in step_lines(run)[:1]}) == 2
    assert len({jobs_of(run)[0].id for run in runs}) == 1
    capsys.readouterr()
    assert main(["runs", "list", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("COMPLETED") == 2


def test_a_pipeline_runs_its_steps_in_turn_and_leaves_out_what_needs_a_failed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # without `megalm`, which commands find all the same
    write_config(tmp_path, "train.steps=3", "checkpoint.interval=3")
    (tmp_path / "pipeline.yaml").write_text(
        f"""
dir: {tmp_path}/all
steps:
  first: {{train: {tmp_path}/run.yaml}}
  copied: {{run: "cp -r {{first}} {{dir}}/copy && ls {{copied}} && megalm --help"}}
  second: {{train: {tmp_path}/run.yaml, set: ["run.load={{dir}}/copy", "train.steps=2"]}}
  broken: {{run: exit 3, after: [first]}}
  third: {{train: {tmp_path}/run.yaml, after: [broken, second]}}
"""
    )
    launch(tmp_path / "pipeline.yaml")
    place = tmp_path / "all"
    for name, state, code in [
        *((name, "COMPLETED", 0) for name in ("first", "copied", "second")),
        *((name, "FAILED", 1) for name in ("broken", "third")),
    ]:
        assert main(["runs", "wait", str(place / name), "--every", "1"]) == code
        assert state_of(place / name).job_state == state
    assert list(list_checkpoints(place / "second")) == [2]
    assert state_of(place / "third").why == f"{place / 'broken'} has failed"
    assert not (place / "third" / "metrics.jsonl").exists()
    first, second = (step_lines(place / name) for name in ("first", "second"))
    assert second[0]["loss"] < first[0]["loss"], "it begins where the first one ended"


@pytest.mark.parametrize(("options", "given", "used"), [((), "", "0,1"), (("--now",), "3,5,7", "3,5")])
def test_a_command_after_lines_of_set_up_is_stopped_with_all_that_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], given: str, used: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    (tmp_path / "pipeline.yaml").write_text(
        f"""
dir: "{tmp_path}/my runs"
cluster: {{gpus_per_node: 2, setup: ["export MARK=its", "cd {tmp_path}"]}}
steps:
  wait: {{run: "echo $$ $MARK $CUDA_VISIBLE_DEVICES > {{wait}}/begun; sleep 300; echo"}}
  never: {{run: echo}}
"""
    )
    launch(tmp_path / "pipeline.yaml")
    run = tmp_path / "my runs" / "wait"
    until(lambda: (run / "begun").exists() and (run / "begun").read_text(), "the command")
    process, mark, gpus = (run / "begun").read_text().split()
    assert (mark, gpus) == ("its", used)
    sleeping = [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    assert main(["runs", "stop", *options, str(run)]) == 0
    until(lambda: not any(is_there(each) for each in (int(process), *sleeping)), "the end")
    wait_for(run, "FAILED" if options else "STOPPED")
    wait_for(run.parent / "never", "CANCELLED")


def is_there(process: int) -> bool:
    """Whether it runs; one that nobody has asked for its end does not."""
    return state_of_process(process) not in (None, "Z", "X")


def test_a_run_whose_time_is_up_saves_and_says_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    launch(write_config(tmp_path))
    until(lambda: last_step(run) > 3, "steps")
    controller = jobs_of(run)[0].id
    [task] = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    os.kill(int(task), signal.SIGUSR2)  # as the controller has it before the time limit
    wait_for(run, "STOPPED")
    saved(run)
    why = state_of(run).why
    assert why is not None and why.startswith("its time was up")
