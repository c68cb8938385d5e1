"""A run that is killed while it generates, scores, learns or saves goes on as if nothing had happened."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megalm.checkpoint.directory import find_checkpoint, list_checkpoints
from megalm.config import dump_config
from tests.checkpoint.stored import assert_equal_tensors, stored_tensors
from tests.rlhf.runs import learn_in_world, make_base, rl_config, step_lines

pytestmark = pytest.mark.slow
SETTINGS = ("checkpoint.interval=1", "rlhf.normalize_rewards=true", "rlhf.policy.epochs=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_base(tmp_path_factory.mktemp("rlhf"))
    learn_in_world(1, rl_config(folder / "whole", folder, "ppo", *SETTINGS))
    return folder


@pytest.mark.parametrize("phase", ["generate", "score", "train", "save"])
def test_killed_in_each_phase(tmp_path: Path, folder: Path, phase: str) -> None:
    run = tmp_path / "run"
    config = rl_config(run, folder, "ppo", *SETTINGS)
    dump_config(config, tmp_path / "config.yaml")
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-m", "tests.rlhf.fatal", str(tmp_path / "config.yaml"), phase]
    killed = subprocess.run(
        command,
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
        timeout=240,
        check=False,
        stdout=subprocess.DEVNULL,
    )
    assert killed.returncode == -signal.SIGKILL
    assert list(list_checkpoints(run)) == [1]
    learn_in_world(1, config)
    assert step_lines(run) == step_lines(folder / "whole")
    for name in (".", "critic"):
        left, right = (stored_tensors(find_checkpoint(one) / name) for one in (run, folder / "whole"))
        assert_equal_tensors(left, right)
