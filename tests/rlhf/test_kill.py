"""A run that is killed while it generates, scores, learns or saves goes on as if nothing had happened."""

from pathlib import Path

import pytest

from megalm.checkpoint import CheckpointWriter, find_checkpoint, list_checkpoints
from megalm.engine.megatron import MegatronEngine
from megalm.rlhf import steps
from megalm.rlhf.rollout import Rollout
from tests.checkpoint.stored import assert_equal_tensors, stored_tensors
from tests.kills import killed
from tests.rlhf.runs import learn, learn_in_world, make_base, rl_config, step_lines

pytestmark = pytest.mark.slow
SETTINGS = ("checkpoint.interval=1", "rlhf.normalize_rewards=true", "rlhf.policy.epochs=2")
# What is called in each phase of the second step of three, and how often before; a step has 2 x 2 updates of actor and critic.
PHASES = {
    "generate": (Rollout, "answer", 1),
    "score": (steps, "token_values", 1),
    "train": (MegatronEngine, "step", 8 + 3),
    "save": (CheckpointWriter, "_publish", 1),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_base(tmp_path_factory.mktemp("rlhf"))
    learn_in_world(1, rl_config(folder / "whole", folder, "ppo", *SETTINGS))
    return folder


@pytest.mark.parametrize("phase", PHASES)
def test_killed_in_each_phase(tmp_path: Path, folder: Path, phase: str) -> None:
    config = rl_config(tmp_path, folder, "ppo", *SETTINGS)
    assert killed(*PHASES[phase], lambda: learn(config))
    assert list(list_checkpoints(tmp_path)) == [1]
    learn_in_world(1, config)
    assert step_lines(tmp_path) == step_lines(folder / "whole")
    for name in (".", "critic"):
        left, right = (stored_tensors(find_checkpoint(run) / name) for run in (tmp_path, folder / "whole"))
        assert_equal_tensors(left, right)
