"""A recipe on a real SLURM cluster: the bytes of a local build, also after kills, and mistakes told before anything runs."""

import json
from pathlib import Path

import pytest

from megalm import cli
from megalm.corpus.build import build_corpus
from tests.corpus.recipes import documents_of, make_inputs, make_recipe

pytestmark = pytest.mark.usefixtures("own_steps", "cluster")
STEPS = [{"length": {"min_characters": 12}}, "sort", "shout"]  # a stage of each kind
TASKS = 2


@pytest.fixture
def inputs(tmp_path):
    return make_inputs(tmp_path / "inputs")


def local(inputs: Path, output: Path, steps: list) -> dict[str, bytes]:
    """What the same recipe gives without SLURM."""
    build_corpus(make_recipe(inputs, output, steps, tasks=TASKS, keep_removed=True))
    return documents_of(output)


def submit(inputs: Path, output: Path, steps: list, **slurm) -> int:
    """`megalm corpus build --executor slurm`; its exit code."""
    recipe = {
        "output": str(output),
        "sources": [{"kind": "jsonl", "path": str(inputs)}],
        "steps": steps,
        "tasks": TASKS,
        "keep_removed": True,
        "executor": {"slurm": {"time": "00:10:00", "mem_per_cpu_gb": 1, **slurm}},
    }
    path = output.with_suffix(".yaml")
    path.write_text(json.dumps(recipe))
    return cli.main(["corpus", "build", str(path), "--executor", "slurm"])


def jobs_of(output: Path) -> list[str]:
    return json.loads((output / "work" / "slurm.json").read_text())


def test_a_recipe_gives_the_bytes_of_a_local_build_and_is_not_submitted_twice(
    cluster, inputs, tmp_path, capsys
):
    output = tmp_path / "out"
    assert submit(inputs, output, STEPS, sbatch={"hold": ""}) == 0
    jobs = jobs_of(output)
    assert len(jobs) == 5 and f"submitted as SLURM jobs {', '.join(jobs)}" in capsys.readouterr().out
    cluster.until(
        lambda: not any(line.endswith("None") for line in cluster.queue())
    )  # till it has looked at them
    assert submit(inputs, output, STEPS) == 2
    line = capsys.readouterr().err
    assert (
        f"SLURM jobs {jobs[0]} (pending: JobHeldUser), {jobs[1]} (pending: " in line and line.count("\n") == 1
    )
    cluster.call("scontrol", "release", ",".join(jobs))
    cluster.wait()
    states = [set(cluster.states(job).values()) for job in jobs]
    assert states == [{"COMPLETED"}] * 5
    assert len(cluster.states(jobs[0])) == TASKS
    assert documents_of(output) == local(inputs, tmp_path / "local", STEPS)
    capsys.readouterr()
    assert submit(inputs, output, STEPS) == 0
    assert str(output) in capsys.readouterr().out and jobs_of(output) == jobs


@pytest.mark.parametrize("end", ["killed", "cancelled"])
def test_jobs_that_were_ended_amid_and_submitted_again_give_the_bytes_of_a_local_build(
    cluster, inputs, tmp_path, end
):
    spent, output = tmp_path / "spent", tmp_path / "out"
    steps = ["length", {"bomb" if end == "killed" else "hang": {"id": "1-7", "spent": str(spent)}}]
    assert submit(inputs, output, steps) == 0
    first, *later = jobs_of(output)
    if end == "cancelled":
        cluster.until(spent.exists)
        cluster.until(lambda: "COMPLETED" in cluster.states(first).values())  # the other task
        cluster.call("scancel", first)
    cluster.wait()
    assert sorted(cluster.states(first).values()) == sorted(
        ["COMPLETED", "FAILED" if end == "killed" else "CANCELLED"]
    )
    assert {state for job in later for state in cluster.states(job).values()} == {"CANCELLED"}
    assert len(list(output.glob("documents/*.zst"))) == 1 and not (output / "report.json").exists()
    assert submit(inputs, output, steps) == 0
    cluster.wait()
    assert len(cluster.states(jobs_of(output)[0])) == 1  # the finished task is not done again
    assert documents_of(output) == local(inputs, tmp_path / "local", steps)


def test_what_sbatch_refuses_is_one_line_in_its_words_and_nothing_stays_queued(
    cluster, inputs, tmp_path, capfd
):
    assert submit(inputs, tmp_path / "a", STEPS, partition="nowhere") == 2
    line = capfd.readouterr().err
    assert "sbatch refused the job of stage 00-read: invalid partition specified: nowhere;" in line
    assert line.count("\n") == 1
    assert submit(inputs, tmp_path / "a", STEPS, sbatch={"colour": "red"}) == 2
    line = capfd.readouterr().err
    assert "unrecognized option '--colour=red'" in line and line.count("\n") == 1
    # The second stage alone is refused: it has more tasks than the cluster lets an array have.
    assert submit(inputs, tmp_path / "b", ["wide"], sbatch={"hold": ""}, max_array_size=5000) == 2
    line = capfd.readouterr().err
    assert "stage 01-wide-all: Batch job submission failed: Invalid job array specification" in line
    assert line.count("\n") == 1
    cluster.wait()
