"""launch/pretrain.sbatch on a real SLURM: two nodes train as one world, and a job that must end saves, requeues and goes on."""

import os
import sys
from pathlib import Path

import pytest

from megalm.checkpoint.directory import list_checkpoints
from megalm.config import dump_config
from megalm.train.callbacks.metrics import read_metrics
from tests.train.runs import ZERO1, events, run_config, step_lines, write_tokens

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
ENDLESS = 1_000_000  # steps: the run ends when it is told to


def submit(slurm, monkeypatch: pytest.MonkeyPatch, config: Path, log: Path) -> str:
    """Hand the script to SLURM for two nodes with a process each; returns the job's id."""
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
    options = ["--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1", "--time=60", f"--output={log}"]
    return slurm.call("sbatch", "--parsable", *options, "launch/pretrain.sbatch", str(config)).strip()


def stops(run: Path) -> list[str]:
    """What the run said when it was told to end."""
    return [event for event in events(run) if event.startswith("stopped")]


def test_two_nodes_train_save_at_the_time_limit_and_at_preemption_and_go_on(slurm, tmp_path, monkeypatch):
    run = tmp_path / "run"
    settings = (ZERO1, f"train.steps={ENDLESS}", f"checkpoint.interval={ENDLESS}")
    config = tmp_path / "run.yaml"
    dump_config(run_config(run, write_tokens(tmp_path), *settings), config)
    job = submit(slurm, monkeypatch, config, tmp_path / "log")

    def is_beyond(step: int) -> bool:
        """Whether more steps are done; an end of the job is shown with its log."""
        state = slurm.states(job)[job]
        assert state in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED"), (
            tmp_path / "log"
        ).read_text()
        return any(line.get("step", 0) > step for line in read_metrics(run / "metrics.jsonl"))

    try:
        slurm.until(lambda: is_beyond(3))
        slurm.call("scancel", "--batch", "--signal=USR1", job)  # as --signal has it before the time limit
        slurm.until(lambda: bool(stops(run)))
        (stop,) = stops(run)
        (saved,) = list_checkpoints(run)
        assert stop.startswith(f"stopped on request after step {saved}, saved")
        slurm.until(lambda: is_beyond(saved + 3))
        slurm.call("scancel", "--batch", "--signal=TERM", job)  # what SLURM sends at preemption
        slurm.wait()
    finally:
        slurm.clear()
    assert slurm.states(job) == {job: "COMPLETED"}
    steps = [line["step"] for line in step_lines(run)]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > saved + 3
    assert list(list_checkpoints(run))[-1] == len(steps)
    assert stops(run)[-1].startswith(f"stopped on request after step {len(steps)}, saved")
