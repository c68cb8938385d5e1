"""Jobs on a real SLURM: they go on after preemption, time limits, requeueing and failures, and the loss curve does not show it."""

import os
import signal
from pathlib import Path

import pytest

from megalm.checkpoint.directory import list_checkpoints
from megalm.cli import main
from megalm.cluster.events import EXCLUDED, FAILED, QUEUED, STARTED
from megalm.cluster.record import jobs_of
from megalm.cluster.state import state_of
from tests.cluster.jobs import (
    check_curve,
    job_events,
    last_step,
    ranks_of,
    saved,
    steps_since_start,
    stops,
    write_config,
)
from tests.train.runs import TP2, ZERO1, step_lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
URGENT = ("--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=true")


def launch(config: Path, *arguments: object) -> str:
    """`megalm launch` on two nodes with a process each, which has to be accepted; the number of its job."""
    sizes = ("--nodes", "2", "--processes-per-node", "1", "--time", "1:00:00", "--set", "cpus_per_node=1")
    assert main(["launch", str(config), *sizes, *map(str, arguments)]) == 0
    return jobs_of(config.parent / "run")[-1].id


def log_of(run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    main(["runs", "logs", str(run)])
    return capsys.readouterr().out


def test_a_job_goes_on_after_preemption_and_requeue(cluster, tmp_path: Path, capsys) -> None:
    config, run = write_config(tmp_path), tmp_path / "run"
    job = launch(config, ZERO1)

    def is_beyond(step: int) -> bool:
        assert cluster.states(job)[job] not in ("FAILED", "COMPLETED", "CANCELLED"), log_of(run, capsys)
        return last_step(run) > step

    def goes_on_after(count: int, queued: int) -> None:
        """After end number `count`, of which the job itself asked for `queued` further starts."""
        cluster.until(lambda: len(stops(run)) == count and cluster.restarts(job) == count)
        step = saved(run)
        assert len(job_events(run, QUEUED)) == queued
        cluster.until(lambda: is_beyond(step + 3))

    cluster.until(lambda: is_beyond(3))
    assert state_of(run).job_state == "RUNNING"
    cluster.call("sbatch", *URGENT)
    goes_on_after(1, queued=1)
    cluster.call("scontrol", "requeue", job)
    goes_on_after(2, queued=1)
    assert main(["runs", "stop", str(run)]) == 0
    cluster.until(lambda: len(stops(run)) == 3 and state_of(run).job_state == "STOPPED")
    saved(run)
    check_curve(run, 2, tmp_path / "undisturbed")


def test_a_job_that_is_stopped_while_its_ranks_start_stays_so(cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = launch(write_config(tmp_path))
    cluster.until(lambda: bool(job_events(run, STARTED)))
    assert main(["runs", "stop", str(run)]) == 0
    cluster.until(lambda: state_of(run).job_state == "STOPPED")
    assert cluster.restarts(job) == 0 and not job_events(run, FAILED)


def test_a_job_whose_time_is_up_goes_on(cluster, tmp_path: Path) -> None:
    config, run = write_config(tmp_path), tmp_path / "run"
    launch(config, ZERO1, "--time", "0:02:00", "--set", "save_seconds=30")

    def queued_at() -> int:
        return max((event["step"] for event in job_events(run, QUEUED)), default=0)

    cluster.until(
        lambda: queued_at() > 0
    )  # SLURM may be a minute early: a start too slow for it is made again
    step = queued_at()
    assert stops(run)[0].startswith("stopped on request after step")
    cluster.until(lambda: last_step(run) > step + 3)
    assert main(["runs", "stop", str(run)]) == 0
    cluster.until(lambda: state_of(run).job_state == "STOPPED")
    check_curve(run, 2, tmp_path / "undisturbed")


def test_after_a_killed_and_a_stopped_rank_the_job_starts_again_and_leaves_the_node_that_failed_twice(
    cluster, tmp_path: Path, capsys
) -> None:
    settings = ("checkpoint.interval=20", "watch.hang_seconds=8")
    config, run = write_config(tmp_path, *settings), tmp_path / "run"
    launch(config, ZERO1)
    used = []
    for count, number in enumerate((signal.SIGKILL, signal.SIGSTOP)):
        cluster.until(lambda: len(list_checkpoints(run)) > 0 and len(job_events(run, STARTED)) == count + 1)  # noqa: B023
        used.append(job_events(run, STARTED)[-1]["nodes"])
        cluster.until(lambda: steps_since_start(run, count + 1) > 3)  # noqa: B023
        os.kill(ranks_of(run)[1], number)
        cluster.until(lambda: len(job_events(run, FAILED)) == count + 1)  # noqa: B023
    assert used[0] == used[1]
    cluster.until(lambda: len(job_events(run, STARTED)) == 3)
    bad = used[0][1]
    failures = job_events(run, FAILED)
    assert [(each["rank"], each["host"]) for each in failures] == [(1, bad)] * 2
    assert failures[0]["how"] == "killed by SIGKILL" and "is stopped (state T)" in failures[1]["how"]
    assert [each["host"] for each in job_events(run, EXCLUDED)] == [bad]
    assert bad not in job_events(run, STARTED)[-1]["nodes"]
    state = state_of(run)
    assert (state.starts, state.failures, state.excluded) == (3, 2, bad), log_of(run, capsys)
    before = last_step(run)
    cluster.until(lambda: last_step(run) > before + 5)
    assert main(["runs", "stop", str(run)]) == 0
    cluster.until(lambda: state_of(run).job_state == "STOPPED")
    check_curve(run, 2, tmp_path / "undisturbed")


def test_a_sweep_is_one_array(cluster, tmp_path: Path) -> None:
    config = write_config(tmp_path, "train.steps=3", "checkpoint.interval=3")
    sizes = ("--processes-per-node", "1", "--time", "1:00:00", "--set", "at_once=1")
    assert main(["launch", str(config), *sizes, "--sweep", "optimizer.lr=1e-3,2e-3"]) == 0
    runs = [tmp_path / "run" / f"lr={lr}" for lr in ("1e-3", "2e-3")]
    numbers = [jobs_of(run)[0].id for run in runs]
    assert [number.partition("_")[2] for number in numbers] == ["0", "1"]
    assert len({number.partition("_")[0] for number in numbers}) == 1
    cluster.until(lambda: all(state_of(run).job_state == "COMPLETED" for run in runs))
    assert [max(line["lr"] for line in step_lines(run)) for run in runs] == [1e-3, 2e-3]


def test_a_pipeline_waits_for_what_its_steps_need(cluster, tmp_path: Path) -> None:
    write_config(tmp_path, "train.steps=4", "checkpoint.interval=4")
    (tmp_path / "pipeline.yaml").write_text(
        f"""
dir: {tmp_path}/all
cluster: {{time: "1:00:00", cpus_per_node: 1}}
steps:
  pretrain: {{train: {tmp_path}/run.yaml, cluster: {{nodes: 2}}}}
  sft: {{train: {tmp_path}/run.yaml, set: ["run.load={{pretrain}}", "train.steps=2"]}}
  card: {{run: "ls {{sft}}/checkpoints > {{card}}/files"}}
  broken: {{run: exit 3, after: []}}
  never: {{run: echo, after: [broken, card]}}
"""
    )
    assert main(["launch", str(tmp_path / "pipeline.yaml")]) == 0
    place = tmp_path / "all"
    states = {
        name: lambda name=name: state_of(place / name).job_state
        for name in ("pretrain", "sft", "card", "broken", "never")
    }
    assert "Dependency" in states["sft"]()
    cluster.wait()
    assert {name: state() for name, state in states.items()} == {
        **dict.fromkeys(("pretrain", "sft", "card"), "COMPLETED"),
        "broken": "FAILED",
        "never": "CANCELLED",
    }
    assert "step_00000002" in (place / "card" / "files").read_text()
    assert step_lines(place / "sft")[0]["loss"] < step_lines(place / "pretrain")[0]["loss"]


def test_what_cannot_run_is_refused_before_it_is_submitted(cluster, tmp_path: Path, capsys) -> None:
    config = write_config(tmp_path)

    def refusal(*options: str) -> str:
        assert main(["launch", str(config), *options]) == 2
        return capsys.readouterr().err

    assert "partition main gives a job at most 4 nodes, not 5" in refusal(
        "--nodes", "5", "batch.global_batch_size=10"
    )
    assert "there is no partition absent; there are main, high" in refusal("--partition", "absent")
    assert "the layout needs a multiple of" in refusal("--nodes", "1", TP2)
    assert "sbatch refused the job" in refusal("--gpus-per-node", "9", "batch.global_batch_size=18")
    assert "[days-]hours:minutes" in refusal("--time", "soon")
    assert "nodez" in refusal("--set", "nodez=1")
    assert "nope" in refusal("data.train=[{path: nope}]")
    assert "min_nodes 3 is more than nodes 2" in refusal("--nodes", "2", "--set", "min_nodes=3")
    assert not jobs_of(tmp_path / "run")


def test_a_dry_run_shows_the_script_and_where_ranks_lie(cluster, tmp_path: Path, capsys) -> None:
    config = write_config(tmp_path)
    options = ["--nodes", "4", "--set", "min_nodes=2", "--gpus-per-node", "2", "--dry-run"]
    assert main(["launch", str(config), *options, TP2]) == 0
    script = capsys.readouterr().out
    for line in ("#SBATCH --nodes=2-4", "#SBATCH --gpus-per-node=2", "#SBATCH --signal=USR2@120"):
        assert line in script.splitlines()
    assert "--kill-on-bad-exit=1" in script
    assert "#   TP 2: ranks 1 apart, inside a node" in script and "#   node 3: ranks 6 to 7, copy 3" in script
    assert not jobs_of(tmp_path / "run")
