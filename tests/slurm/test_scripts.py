"""The shipped sbatch files on a real SLURM: two nodes train as one world, and a job that must end saves, requeues and goes on."""

import os
import sys
from pathlib import Path

import pytest

from megalm.checkpoint.directory import list_checkpoints
from megalm.config import dump_config
from megalm.train.callbacks.metrics import read_metrics
from tests.cluster.jobs import check_curve
from tests.train.runs import ZERO1, events, run_config, step_lines, write_tokens

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
ENDLESS = 1_000_000  # steps: the run ends when it is told to


def submit(slurm, monkeypatch: pytest.MonkeyPatch, script: str, config: Path, log: Path) -> str:
    """Hand the script to SLURM as it is, for two nodes with a process each; returns the job's id."""
    variables = {
        "MEGALM_VENV": sys.prefix,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "NPROC_PER_NODE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    sizes = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1"]
    options = [*sizes, "--time=60", f"--output={log}"]
    return slurm.call("sbatch", "--parsable", *options, script, str(config)).strip()


def stops(run: Path) -> list[str]:
    """What the run said when it was told to end."""
    return [event for event in events(run) if event.startswith("stopped")]


@pytest.mark.parametrize(
    "script", sorted(f"launch/{path.name}" for path in (ROOT / "launch").glob("*.sbatch"))
)
def test_two_nodes_train_save_and_go_on_after_preemption_and_at_the_time_limit(
    slurm, tmp_path, monkeypatch, script
):
    run, log = tmp_path / "run", tmp_path / "log"
    settings = (ZERO1, f"train.steps={ENDLESS}", f"checkpoint.interval={ENDLESS}")
    config = tmp_path / "run.yaml"
    dump_config(run_config(run, write_tokens(tmp_path), *settings), config)
    job = submit(slurm, monkeypatch, script, config, log)

    def is_beyond(step: int) -> bool:
        """Whether more steps are done; an end of the job is shown with its log."""
        assert slurm.states(job)[job] not in ("FAILED", "COMPLETED", "CANCELLED"), log.read_text()
        return any(line.get("step", 0) > step for line in read_metrics(run / "metrics.jsonl"))

    def saved() -> int:
        """The step of the last save, which is the last step done."""
        last = len(step_lines(run))
        assert list(list_checkpoints(run))[-1] == last
        assert stops(run)[-1].startswith(f"stopped on request after step {last}, saved")
        return last

    try:
        slurm.until(lambda: is_beyond(3))
        urgent = ["--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=true"]
        slurm.call("sbatch", *urgent)
        slurm.until(lambda: len(stops(run)) == 1 and slurm.restarts(job) == 1)
        first = saved()
        slurm.until(lambda: is_beyond(first + 3))
        slurm.call("scancel", "--batch", "--signal=USR1", job)  # as --signal has it before the time limit
        slurm.until(lambda: len(stops(run)) == 2 and slurm.restarts(job) == 2)
        second = saved()
        slurm.until(lambda: is_beyond(second + 3))
        slurm.call("scontrol", "requeue", job)
        slurm.until(lambda: len(stops(run)) == 3 and slurm.restarts(job) == 3)
        third = saved()
    finally:
        slurm.clear()
    assert check_curve(run, 2, tmp_path / "undisturbed") == third > second + 3
