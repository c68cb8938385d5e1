"""PPO with actor, critic, reference and reward model on a real SLURM: preempted in the middle, it goes on along the same curve."""

from pathlib import Path

import pytest

from megalm.cli import main
from megalm.cluster.events import QUEUED, STARTED
from megalm.cluster.record import jobs_of
from megalm.cluster.state import state_of
from megalm.config import dump_config
from tests.cluster.jobs import job_events, last_step
from tests.rlhf.runs import learn_in_world, make_base, make_reward_model, rl_config, step_lines
from tests.train.runs import TP2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
URGENT = ("--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=true")


def test_preempted_in_the_middle_it_goes_on_along_the_same_curve(cluster, tmp_path: Path) -> None:
    make_base(tmp_path)
    judge = make_reward_model(tmp_path)
    settings = (
        TP2,
        "train.steps=12",
        f"rlhf.rewards=[{{name: model, checkpoint: {judge}}}]",
        "rlhf.normalize_rewards=true",
    )
    run, whole = (rl_config(tmp_path / name, tmp_path, "ppo", *settings) for name in ("run", "whole"))
    dump_config(run, tmp_path / "run.yaml")
    sizes = ("--nodes", "2", "--processes-per-node", "2", "--time", "1:00:00", "--set", "cpus_per_node=2")
    assert main(["launch", str(tmp_path / "run.yaml"), *sizes]) == 0
    directory = tmp_path / "run"
    job = jobs_of(directory)[0].id
    cluster.until(lambda: last_step(directory) >= 2)
    cluster.call("sbatch", *URGENT)
    cluster.until(lambda: cluster.restarts(job) == 1)
    [queued] = job_events(directory, QUEUED)
    assert 2 <= queued["step"] < 12
    cluster.until(lambda: state_of(directory).job_state == "COMPLETED")
    assert [start["step"] for start in job_events(directory, STARTED)] == [0, queued["step"]]
    learn_in_world(4, whole)
    assert step_lines(directory) == step_lines(tmp_path / "whole")
    assert len(step_lines(directory)) == 12
