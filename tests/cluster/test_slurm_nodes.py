"""Jobs whose nodes come and go: one that dies, fewer than were asked for, and more again."""

from pathlib import Path

import pytest

from megalm.checkpoint.directory import list_checkpoints
from megalm.cli import main
from megalm.cluster.events import STARTED
from megalm.cluster.record import jobs_of
from megalm.cluster.state import state_of
from tests.cluster.jobs import check_curve, job_events, last_step, write_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SIZES = ("--processes-per-node", "1", "--time", "1:00:00", "--set", "cpus_per_node=1")


def test_a_node_dies_and_the_job_goes_on_with_fewer_and_later_with_more(cluster, tmp_path: Path) -> None:
    """Four nodes of which two die: with min_nodes the same batch is shared among the two that are left, and then among four again."""
    config, run = (
        write_config(tmp_path, "checkpoint.interval=20", "batch.micro_batch_size=1"),
        tmp_path / "run",
    )
    elastic = ("--nodes", "3", "--set", "min_nodes=1")
    assert main(["launch", str(config), *SIZES, *elastic]) == 0
    job = jobs_of(run)[-1].id

    def nodes_of_start(number: int) -> list[str]:
        """The nodes used from start `number` on, once it has saved a checkpoint."""
        cluster.until(lambda: len(job_events(run, STARTED)) == number)
        before = max(list_checkpoints(run), default=0)
        cluster.until(lambda: max(list_checkpoints(run), default=0) > before)
        return job_events(run, STARTED)[-1]["nodes"]

    first = nodes_of_start(1)
    assert len(first) == 2, "three nodes cannot share eight samples"
    dead = [node for node in cluster.nodes if node != first[0]]
    try:
        for node in dead:
            cluster.fail(node)
        assert nodes_of_start(2) == first[:1]
        assert cluster.restarts(job) >= 1
    finally:
        for node in dead:
            cluster.repair(node)
    cluster.call("scontrol", "requeue", job)
    assert len(nodes_of_start(3)) == 2
    step = last_step(run)
    cluster.until(lambda: last_step(run) > step + 3)
    assert main(["runs", "stop", str(run)]) == 0
    cluster.until(lambda: state_of(run).job_state == "STOPPED")
    check_curve(run, 1, tmp_path / "undisturbed", rel=1e-4)
