"""Roles on ranks of their own: the curve of one process, runs that go on, and layouts that are refused."""

from pathlib import Path
from typing import Any

import pytest

from megalm.checkpoint import find_checkpoint
from megalm.config.rlhf_ranks import ranks_by_world
from megalm.errors import UserError
from tests.checkpoint.stored import assert_equal_tensors, stored_tensors
from tests.rlhf.runs import (
    REWARDS,
    learn_apart,
    learn_in_world,
    make_base,
    make_reward_model,
    rl_config,
    step_lines,
)
from tests.rlhf.test_steps import CRITIC_TP, GAP, PP2, TP2, ZERO, assert_same_curve

ROLLOUT = "rlhf.rollout.ranks={}".format
FROZEN = "rlhf.frozen.ranks={}".format
ROLLOUT_TP = "rlhf.rollout.tensor_model_parallel_size={}".format
ROLLOUT_PP = "rlhf.rollout.pipeline_model_parallel_size={}".format
CRITIC = "rlhf.critic.ranks={}".format
FROZEN_TP = "rlhf.frozen.tensor_model_parallel_size={}".format
LORA = ("lora.rank=4", "lora.alpha=8")
APART: dict[str, tuple[int, tuple[str, ...]]] = {
    "answers apart": (2, (ROLLOUT(1),)),
    "trains on TP2, answers on 2 copies": (4, (TP2, ROLLOUT(2), ROLLOUT_TP(1))),
    "trains on DP2 with ZeRO-1, answers on PP2": (4, (ZERO(1), ROLLOUT(2), ROLLOUT_PP(2))),
    "DeepSpeed, answers apart": (3, ("engine=deepspeed", ZERO(2), ROLLOUT(1))),
    "frozen models apart, at rest": (2, (FROZEN(1), "rlhf.offload_frozen=true")),
    "critic apart": (2, (CRITIC(1),)),
    "trains on TP2, critic on DP2 with ZeRO-1": (4, (TP2, ZERO(1), CRITIC(2), CRITIC_TP(1))),
    "all apart": (4, (ROLLOUT(1), FROZEN(1), CRITIC(1))),
    "trains on PP2, answers and frozen models apart": (
        4,
        (
            PP2,
            ROLLOUT(1),
            ROLLOUT_PP(1),
            FROZEN(1),
            FROZEN_TP(1),
            "rlhf.frozen.pipeline_model_parallel_size=1",
        ),
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_base(tmp_path_factory.mktemp("rlhf"))
    make_reward_model(folder)
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[dict[str, Any]]:
    """What one process finds."""
    learn_in_world(1, ppo(folder / "alone", folder))
    return step_lines(folder / "alone")


def ppo(directory: Path, folder: Path, *overrides: str) -> Any:
    """PPO with a reward model among the rewards."""
    judge = f"{{name: model, checkpoint: {folder / 'judge'}}}"
    rules = "".join(f", {rule}" for rule in REWARDS[1:])
    held_out = ("train.eval_interval=2",)
    return rl_config(directory, folder, "ppo", f"rlhf.rewards=[{judge}{rules}]", *held_out, *overrides)


@pytest.mark.parametrize("roles", APART)
def test_roles_apart_give_one_processs_curve(tmp_path: Path, folder: Path, alone: Any, roles: str) -> None:
    world_size, overrides = APART[roles]
    learn_apart(world_size, ppo(tmp_path, folder, *overrides))
    found = step_lines(tmp_path)
    assert_same_curve(found, alone)
    assert max(line["logprob_gap_max"] for line in found) < GAP


def test_answers_written_under_the_same_layout_are_the_same(tmp_path: Path, folder: Path, alone: Any) -> None:
    learn_apart(2, ppo(tmp_path, folder, ROLLOUT(1)))
    exact = ("reward", "response_length", "finished", "loss", "kl", "grad_norm")
    for left, right in zip(step_lines(tmp_path), alone, strict=True):
        for name in exact:
            assert left[name] == pytest.approx(right[name], rel=1e-5, abs=1e-7), name
    written, expected = ((run / "rollouts.jsonl").read_text() for run in (tmp_path, folder / "alone"))
    assert written == expected


def test_adapters_pass_to_copies_apart(tmp_path: Path, folder: Path) -> None:
    """And the reference, the actor without them, stays where the actor is."""
    for run, overrides in (("alone", ()), ("apart", (TP2, ROLLOUT(1), ROLLOUT_TP(1)))):
        config = rl_config(tmp_path / run, folder, "grpo", *LORA, "rlhf.kl.coefficient=0.05", *overrides)
        learn_in_world(1, config) if run == "alone" else learn_apart(3, config)
    assert_same_curve(step_lines(tmp_path / "apart"), step_lines(tmp_path / "alone"))


def test_a_run_with_roles_apart_goes_on_and_also_without(tmp_path: Path, folder: Path, alone: Any) -> None:
    roles = (ROLLOUT(1), FROZEN(1), CRITIC(1))
    learn_apart(4, ppo(tmp_path / "whole", folder, *roles))
    for _ in range(2):
        learn_apart(4, ppo(tmp_path / "parts", folder, *roles, "train.exit_after_steps=1"))
    learn_in_world(1, ppo(tmp_path / "parts", folder))
    assert step_lines(tmp_path / "parts") == step_lines(tmp_path / "whole")
    for name in (".", "critic"):
        left, right = (find_checkpoint(tmp_path / run) / name for run in ("parts", "whole"))
        assert_equal_tensors(stored_tensors(left), stored_tensors(right))


@pytest.mark.parametrize(
    ("world_size", "overrides", "message"),
    [
        (2, (ROLLOUT(1), FROZEN(1)), "ranks 1 of 2 process.* leave none to train on: start 3 or more"),
        (
            4,
            (TP2, ROLLOUT(1), ROLLOUT_TP(1)),
            r"3 of 4 processes train \(rlhf.rollout.ranks 1 are apart\): .* TP 2",
        ),
    ],
)
def test_a_number_of_processes_that_does_not_fit_is_refused(
    tmp_path: Path, folder: Path, world_size: int, overrides: tuple[str, ...], message: str
) -> None:
    config = rl_config(tmp_path, folder, "ppo", *overrides)
    with pytest.raises(UserError, match=message):
        ranks_by_world(config, world_size)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((ROLLOUT(1), TP2), "rlhf.rollout.ranks 1 is not a multiple of .* 2"),
        ((FROZEN_TP(2),), "set rlhf.frozen.ranks"),
        ((FROZEN(1), "rlhf.kl.coefficient=0"), "no frozen model to put there"),
        ((CRITIC(1),), "task `grpo` has no critic"),
    ],
)
def test_roles_that_cannot_have_their_ranks_are_refused(
    tmp_path: Path, folder: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        rl_config(tmp_path, folder, "grpo", *overrides)
