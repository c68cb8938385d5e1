"""Runs with roles on ranks of their own end as one: when a role's process dies, and when somebody asks them to stop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megalm.checkpoint.directory import list_checkpoints
from megalm.config import dump_config
from tests.kill.test_kill import ranks_of, wait_for
from tests.rlhf.runs import make_base, rl_config, step_lines

pytestmark = pytest.mark.slow
DEADLINE = 240
LAUNCHER = """
import sys
from megalm.launch import supervise
sys.exit(supervise([sys.executable, "-m", *sys.argv[2:]], int(sys.argv[1])))
"""
APART = ("rlhf.rollout.ranks=1", "checkpoint.interval=1")


def start(nproc: int, *command: str) -> subprocess.Popen[str]:
    """A world of processes that run a module with arguments, under the launcher of `--nproc`."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(nproc), *command],
        env=environment | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("rlhf"))


def test_a_role_that_dies_ends_the_run_with_its_name(tmp_path: Path, folder: Path) -> None:
    dump_config(rl_config(tmp_path / "run", folder, "grpo", *APART), tmp_path / "config.yaml")
    world = start(2, "tests.rlhf.fatal", str(tmp_path / "config.yaml"), "write")
    _, errors = world.communicate(timeout=DEADLINE)
    assert world.returncode == 1
    assert "rank 1 failed (killed by SIGKILL)" in errors and "Traceback" not in errors
    assert list(list_checkpoints(tmp_path / "run")) == [1]


def test_a_request_to_stop_saves_and_ends_all(tmp_path: Path, folder: Path) -> None:
    run = tmp_path / "run"
    dump_config(rl_config(run, folder, "grpo", *APART, "train.steps=10000"), tmp_path / "config.yaml")
    world = start(2, "megalm", "train", str(tmp_path / "config.yaml"))
    end = time.monotonic() + DEADLINE
    while not list_checkpoints(run):
        assert world.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    world.send_signal(signal.SIGTERM)
    _, errors = world.communicate(timeout=DEADLINE)
    assert world.returncode == 0, errors
    assert list(list_checkpoints(run))[-1] == step_lines(run)[-1]["step"] < 10000


@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc")
def test_a_role_that_hangs_is_named(tmp_path: Path, folder: Path) -> None:
    run = tmp_path / "run"
    settings = ("train.steps=10000", "watch.hang_seconds=6")
    dump_config(rl_config(run, folder, "grpo", *APART, *settings), tmp_path / "config.yaml")
    world = start(2, "megalm", "train", str(tmp_path / "config.yaml"))
    try:
        wait_for(world, lambda: len(list_checkpoints(run)) > 1)
        pid = ranks_of(world)[1]
        os.kill(pid, signal.SIGSTOP)
        _, errors = world.communicate(timeout=DEADLINE)
    finally:
        world.kill()
    assert world.returncode == 1
    assert f"process {pid}) is stopped (state T); rank 0 wait(s) in " in errors
