"""What may be asked of a cluster, the script that comes of it, and the words by which the state of a job is told."""

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from megalm.cluster import slurm
from megalm.cluster.checks import check_works
from megalm.cluster.command import CommandJob
from megalm.cluster.events import ENDED, FAILED, QUEUED, STARTED, STOPPED, events_of, failed_starts, tell
from megalm.cluster.jobs import TrainJob
from megalm.cluster.pipeline import load_pipeline
from megalm.cluster.place import by_topology, place_of_node
from megalm.cluster.record import Job, add_job, folder_of
from megalm.cluster.settings import ClusterSettings, parse_settings
from megalm.cluster.state import job_state, state_of, stop_job
from megalm.cluster.submit import Work, script_of
from megalm.cluster.sweep import combinations, run_directory
from megalm.config.load import assign
from megalm.errors import UserError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("time='0:00'", "time 0:00 leaves nothing before the 120 s to save in"),
        ("time='0:02'", "time 0:02 leaves nothing"),
        ("kind=slrum", "kind"),
        ("nodes=0", "nodes"),
        ("env.X=true", "env.X"),
        ("sbatch.time=60", "time has a setting of its own: time"),
        ("sbatch.cpus-per-task=4", "cpus-per-task has a setting of its own: cpus_per_node"),
        ("sbatch.output=log", "output is set by megalm itself"),
        ("sbatch.no-requeue=true", "no-requeue is set by megalm itself"),
        ("sbatch.--reservation=x", "--reservation is no long name"),
        ("sbatch.x=y", "x is no long name"),
    ],
)
def test_a_wrong_setting_is_refused_in_a_line(change: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_settings({}, [change], "here")
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_container_is_not_for_this_machine() -> None:
    with pytest.raises(UserError, match="container is for slurm"):
        parse_settings({"container": "x.sqsh"}, ["kind=local"], "here")


def test_a_name_that_looks_like_a_number_stays_a_name() -> None:
    assert (
        parse_settings({}, [assign("account", "0123"), assign("partition", "1e3")], "here").account == "0123"
    )


def test_numbers_in_the_environment_are_text() -> None:
    assert parse_settings({"env": {"OMP_NUM_THREADS": 8}}, ["env.X=0.5"], "here").env == {
        "OMP_NUM_THREADS": "8",
        "X": "0.5",
    }


def lines_of(settings: ClusterSettings, directory: Path = Path("runs/x")) -> tuple[dict[str, str], list[str]]:
    """Options of sbatch in the script, each of which stands there once, and the words of its command."""
    lines = script_of(Work(directory, settings, command="true")).splitlines()
    options = [shlex.split(line)[1].partition("=") for line in lines if line.startswith("#SBATCH")]
    assert len({name for name, _, _ in options}) == len(options)
    [command] = [line for line in lines if line.startswith("srun")]
    return {name: value for name, _, value in options}, shlex.split(command)


def test_paths_of_any_signs_stay_in_one_piece() -> None:
    directory = Path('/shared/my "best" run\'s $HOME')
    options, command = lines_of(ClusterSettings(python="/env of mine/python"), directory)
    assert options["--output"] == f"{directory}/cluster/%j_0_log.out"
    assert command[-5:] == [
        "/env of mine/python",
        "-u",
        "-m",
        "submitit.core._submit",
        f"{directory}/cluster",
    ]


def test_a_task_gets_the_cores_that_the_job_has_been_given() -> None:
    options, command = lines_of(ClusterSettings(cpus_per_node=64))
    assert options["--cpus-per-task"] == "64" and "--cpus-per-task=64" in command


def test_further_options_of_sbatch_replace_those_of_the_same_name() -> None:
    settings = ClusterSettings(sbatch={"job-name": "mine", "reservation": "a b", "exclusive": True})
    options, _ = lines_of(settings)
    assert (options["--job-name"], options["--reservation"], options["--exclusive"]) == ("mine", "a b", "")


def test_in_a_container_its_own_python_runs(tmp_path: Path) -> None:
    settings = ClusterSettings(
        container="my image.sif", container_runtime="apptainer", container_mounts=["/a b:/c"], gpus_per_node=1
    )
    _, command = lines_of(settings)
    place = command.index("apptainer")
    assert command[place : place + 7] == [
        "apptainer",
        "exec",
        "--nv",
        "--bind",
        "/a b:/c",
        "my image.sif",
        "python3",
    ]
    _, command = lines_of(settings.model_copy(update={"container_runtime": "pyxis"}))
    assert {"--container-image=my image.sif", "--container-mounts=/a b:/c"} <= set(command)
    assert "python3" in command


def test_blocks_of_nodes_follow_each_other_as_switches_do() -> None:
    blocks = [
        {"BlockName": "b0", "BlockIndex": "0", "Nodes": "n[1,3]", "BlockSize": "2"},
        {"BlockName": "b1", "BlockIndex": "1", "Nodes": "n[2,6]", "BlockSize": "2"},
        {"BlockName": "b2", "BlockIndex": "2", "Nodes": "n[4,5]", "BlockSize": "2"},
        {"AggregatedBlock": "b[0,2]", "BlockIndex": "3", "Nodes": "n[1,3-5]", "BlockSize": "4"},
    ]
    assert by_topology([f"n{number}" for number in range(1, 7)], blocks) == [
        "n1",
        "n3",
        "n4",
        "n5",
        "n2",
        "n6",
    ]


def test_a_job_of_this_machine_takes_no_allocation_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "other[1-2]")
    assert slurm.own_job() == "7"
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    assert slurm.own_job() is None
    assert place_of_node().hosts == (socket.gethostname(),)


def test_every_run_of_a_sweep_has_a_directory_of_its_own() -> None:
    values = ["a/b", "a b", "a_b", "[{path: " + "x" * 300 + "}]", "[{path: " + "x" * 301 + "}]", "ä"]
    names = [run_directory("runs", [f"data.path={value}"]).name for value in values]
    assert names[2] == "path=a_b"
    assert len(set(names)) == len(values) and max(map(len, names)) < 200
    assert combinations(["run.seed=1"]) == [["run.seed=1"]]


def write_pipeline(folder: Path, steps: str, directory: str = "all", values: str = "{}") -> Path:
    """A pipeline of commands, a line each."""
    file = folder / "pipeline.yaml"
    file.write_text(f"dir: {directory}\ncluster: {{kind: local}}\nvalues: {values}\nsteps:\n{steps}")
    return file


def test_directories_in_commands_are_words_and_braces_of_the_shell_are_left_alone(tmp_path: Path) -> None:
    steps = """
  first: {run: "echo ${first} {a,b} {nothing}"}
  second: {run: "ls {first}/x {dir}"}
"""
    works = load_pipeline(write_pipeline(tmp_path, steps, "my runs/all"), [], [])
    assert works[0].command == "echo ${first} {a,b} {nothing}"
    assert works[1].command == "ls 'my runs/all/first'/x 'my runs/all'"


def test_values_are_said_once_and_changed_from_outside(tmp_path: Path) -> None:
    steps = """
  first: {run: "ls {place} {share}"}
  second: {train: "{config}", set: ["run.load={place}/model"]}
"""
    config = Path("configs/pretrain/quickstart.yaml").resolve()
    values = f"{{place: a b, share: 0.2, config: {config}}}"
    file = write_pipeline(tmp_path, steps, values=values)
    first, second = load_pipeline(file, ["values.share=3"], [])
    assert first.command == "ls 'a b' 3"
    assert second.config is not None and second.config.run.load == "a b/model"
    for wrong, message in (
        ("values.first=x", "first is the name of a value and of something else"),
        ("values.shares=x", None),
        ("values.place='a#b'", "the value place ('a#b') would be taken apart in set"),
        ("values.place=[a]", "`values.place`"),
        ("steps.first.run=ls {plac}", "{plac} is no step: did you mean 'place'?"),
    ):
        if message is None:
            assert load_pipeline(file, [wrong], [])[0].command == first.command.replace("3", "0.2")
            continue
        with pytest.raises(UserError) as refused:
            load_pipeline(file, [wrong], [])
        assert message in str(refused.value)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            "  a: {run: x}\n  b: {run: 'ls {a}', after: []}",
            "b uses {a} and does not wait for it: put a into its after",
        ),
        ("  a: {run: 'ls {b}'}\n  b: {run: x}", "a uses {b} and does not wait for it"),
        ("  first: {run: x}\n  b: {run: 'ls {frist}'}", "b: {frist} is no step: did you mean 'first'?"),
        ("  a: {run: x}\n  b: {train: x.yaml, set: ['run.load={nosuch}']}", "b: {nosuch} is no step"),
        ("  a b: {run: x}", "a step cannot be called 'a b'"),
        ("  a: {run: x}\n  a: {run: y}", "the key `a` stands twice"),
        ("  a: {run: x, after: [a]}", "a comes after a, which is no step above it"),
        ("  a: {run: x, cluster: {setup: [y]}}\n  b: {run: x}", "put setup beside steps"),
    ],
)
def test_a_step_that_cannot_work_is_refused_in_a_line(tmp_path: Path, steps: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        load_pipeline(write_pipeline(tmp_path, steps), [], [])
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_directory_that_yaml_would_take_apart_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'#' in it would be taken apart"):
        load_pipeline(write_pipeline(tmp_path, "  a: {run: x}", "'runs #1'"), [], [])


def test_it_is_said_what_a_container_must_see(tmp_path: Path) -> None:
    settings = ClusterSettings(container="x.sqsh", container_mounts=[f"{Path.cwd()}:/code"])
    [seen, queue] = check_works(
        [Work(tmp_path, settings.model_copy(update={"kind": "local"}), command="true")]
    )
    assert str(tmp_path) in seen and str(Path.cwd()) not in seen and "scontrol" in queue


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[int]:
    """A process with the number of an earlier job."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "submitit.local._local"])
    yield process.pid
    process.kill()
    process.wait()


def test_a_process_that_was_given_the_number_of_a_job_later_is_left_alone(
    tmp_path: Path, sleeper: int
) -> None:
    job = Job(str(sleeper), "local", "", str(tmp_path), str(tmp_path), {}, "true", socket.gethostname())
    folder_of(tmp_path).mkdir()
    add_job(tmp_path, job)
    assert job_state(tmp_path, job) == "CANCELLED"
    tell(folder_of(tmp_path), job.id, STARTED)
    assert state_of(tmp_path).job_state == "FAILED"
    stop_job(tmp_path, job, at_once=True)
    os.kill(sleeper, 0)
    elsewhere = replace(job, host="another")
    assert job_state(tmp_path, elsewhere) == "UNKNOWN (of another)"
    with pytest.raises(UserError, match="runs on another"):
        stop_job(tmp_path, elsewhere, at_once=True)
    tell(folder_of(tmp_path), job.id, ENDED, code=0)
    assert job_state(tmp_path, elsewhere) == "COMPLETED"


def test_nodes_that_fail_together_are_one_failure() -> None:
    kinds = (STARTED, FAILED, FAILED, STARTED, QUEUED, STARTED, FAILED)
    assert failed_starts({"event": kind} for kind in kinds) == {1, 3}


def test_a_job_that_is_told_to_stop_before_its_ranks_start_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, scontrol = folder_of(tmp_path / "run"), tmp_path / "scontrol"
    folder.mkdir(parents=True)
    scontrol.write_text('#!/bin/sh\n[ "$3" = topology ] && kill -TERM $PPID\necho JobId=7 JobState=RUNNING\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in (("JOB_ID", "7"), ("NODEID", "0"), ("JOB_NODELIST", "n1")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as end:
            TrainJob(str(folder), str(Path.cwd()), 1, elastic=False, max_restarts=3)()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert end.value.code == 128 + signal.SIGTERM
    assert [event["event"] for event in events_of(folder, "7")] == [STOPPED]


def test_a_command_that_is_never_done_in_its_time_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for _ in range(2):
        tell(tmp_path, "7", QUEUED, at="time limit")
    with pytest.raises(SystemExit) as end:
        CommandJob("kill -USR2 $PPID; sleep 60", str(tmp_path), str(tmp_path))()
    last = list(events_of(tmp_path, "7"))[-1]
    assert end.value.code == 1
    assert (last["event"], last["why"]) == (ENDED, "did not end in 3 starts: give it more time (--time)")
