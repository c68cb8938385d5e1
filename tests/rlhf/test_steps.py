"""PPO, GRPO and RLOO under any layout give one process's curve; rollout and training agree; a run goes on exactly."""

from pathlib import Path
from typing import Any

import pytest

from megalm.checkpoint import find_checkpoint
from megalm.testing import RankError
from tests.checkpoint.stored import assert_equal_tensors, stored_tensors
from tests.rlhf.runs import learn_in_world, make_base, rl_config, step_lines

TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
PP2 = "parallel.pipeline_model_parallel_size=2"
ZERO = "parallel.zero_stage={}".format
CRITIC_TP = "rlhf.critic.tensor_model_parallel_size={}".format
LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "TP2": (2, (TP2,)),
    "TP2+SP": (2, (TP2, SP)),
    "PP2": (2, (PP2,)),
    "DP2+ZeRO-1": (2, (ZERO(1),)),
    "CP2": (2, ("parallel.context_parallel_size=2",)),
    "TP2xPP2": (4, (TP2, PP2)),
    "DeepSpeed, ZeRO-2": (2, ("engine=deepspeed", ZERO(2))),
    "trains on PP2, answers on TP2": (
        2,
        (PP2, "rlhf.rollout.pipeline_model_parallel_size=1", "rlhf.rollout.tensor_model_parallel_size=2"),
    ),
    "frozen models at rest": (1, ("rlhf.offload_frozen=true",)),
    "actor TP2, critic TP1": (2, (TP2, CRITIC_TP(1))),
}
# of figures that are about as large as 1; a sampled token that differs would change them by far more
BOUND = 1e-4
GAP = 2e-5  # of a single token; 4e-6 was seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("rlhf"))


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What one process finds, by task."""
    found = {}
    for task in ("ppo", "grpo", "rloo"):
        learn_in_world(1, rl_config(folder / f"alone {task}", folder, task))
        found[task] = step_lines(folder / f"alone {task}")
    return found


def assert_same_curve(
    found: list[dict[str, Any]], expected: list[dict[str, Any]], bound: float = BOUND
) -> None:
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for left, right in zip(found, expected, strict=True):
        assert left.keys() == right.keys()
        for name, value in right.items():
            assert left[name] == pytest.approx(value, rel=bound, abs=bound), (right["step"], name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ppo_under_each_layout_is_one_processs(tmp_path: Path, folder: Path, alone: Any, layout: str) -> None:
    world_size, overrides = LAYOUTS[layout]
    learn_in_world(world_size, rl_config(tmp_path, folder, "ppo", *overrides))
    found = step_lines(tmp_path)
    assert_same_curve(found, alone["ppo"])
    assert max(line["logprob_gap_max"] for line in found) < GAP


@pytest.mark.parametrize("task", ["grpo", "rloo"])
@pytest.mark.parametrize("layout", ["TP2xPP2", "DP2+ZeRO-1"])
def test_groups_under_each_layout_are_one_processs(
    tmp_path: Path, folder: Path, alone: Any, task: str, layout: str
) -> None:
    world_size, overrides = LAYOUTS[layout]
    learn_in_world(world_size, rl_config(tmp_path, folder, task, *overrides))
    assert_same_curve(step_lines(tmp_path), alone[task])


@pytest.mark.parametrize("task", ["ppo", "grpo", "rloo"])
def test_rollout_and_training_give_a_token_the_same_log_probability(alone: Any, task: str) -> None:
    assert max(line["logprob_gap_max"] for line in alone[task]) < GAP
    assert max(line["logprob_gap"] for line in alone[task]) < 1e-5
    assert alone[task][0]["kl"] == 0  # the reference is what the actor begins with
    assert alone[task][-1]["kl_per_token"] > 0


@pytest.mark.parametrize("engine", ["megatron", "deepspeed"])
@pytest.mark.parametrize("task", ["ppo", "grpo"])
def test_a_run_that_goes_on_is_the_run_that_went_through(
    tmp_path: Path, folder: Path, task: str, engine: str
) -> None:
    settings = (
        f"engine={engine}",
        "rlhf.policy.ema_decay=0.5",
        "rlhf.normalize_rewards=true",
        "rlhf.kl.target=0.1",
    )
    whole = rl_config(tmp_path / "whole", folder, task, *settings)
    learn_in_world(1, whole)
    for _ in range(3):
        parts = rl_config(tmp_path / "parts", folder, task, *settings, "train.exit_after_steps=1")
        learn_in_world(1, parts)
    assert step_lines(tmp_path / "parts") == step_lines(tmp_path / "whole")
    for name in (".", "ema", *(["critic"] if task == "ppo" else [])):
        left, right = (find_checkpoint(tmp_path / run) / name for run in ("parts", "whole"))
        assert_equal_tensors(stored_tensors(left), stored_tensors(right))


def test_a_run_goes_on_with_another_layout_of_each_role(tmp_path: Path, folder: Path, alone: Any) -> None:
    learn_in_world(1, rl_config(tmp_path, folder, "ppo", "train.exit_after_steps=2"))
    own = (
        "rlhf.rollout.tensor_model_parallel_size=1",
        CRITIC_TP(1),
        "rlhf.critic.pipeline_model_parallel_size=2",
    )
    learn_in_world(2, rl_config(tmp_path, folder, "ppo", TP2, *own))
    assert_same_curve(step_lines(tmp_path), alone["ppo"])


ONE_UPDATE = ("batch.global_batch_size=16", "rlhf.kl.coefficient=0")


def test_one_update_a_step_needs_no_scoring(tmp_path: Path, folder: Path) -> None:
    """The gap that the loss finds is the one that scoring finds, under another layout and in a run that goes on, too."""
    learn_in_world(1, rl_config(tmp_path / "alone", folder, "grpo", *ONE_UPDATE))
    alone = step_lines(tmp_path / "alone")
    assert 0 < max(line["logprob_gap"] for line in alone) < 1e-5 and "logprob_gap_max" not in alone[0]
    learn_in_world(
        1, rl_config(tmp_path / "scored", folder, "grpo", ONE_UPDATE[0], "rlhf.kl.coefficient=1e-12")
    )
    for left, right in zip(alone, step_lines(tmp_path / "scored"), strict=True):
        for name in ("loss", "grad_norm", "entropy", "logprob_gap"):
            assert left[name] == pytest.approx(right[name], rel=1e-4, abs=1e-7), name
    learn_in_world(4, rl_config(tmp_path / "spread", folder, "grpo", *ONE_UPDATE, TP2, PP2))
    assert_same_curve(step_lines(tmp_path / "spread"), alone)
    for _ in range(3):
        learn_in_world(
            1, rl_config(tmp_path / "parts", folder, "grpo", *ONE_UPDATE, "train.exit_after_steps=1")
        )
    assert step_lines(tmp_path / "parts") == alone


def test_a_gap_between_rollout_and_training_is_refused(tmp_path: Path, folder: Path) -> None:
    config = rl_config(tmp_path, folder, "grpo", "rlhf.rollout.max_logprob_gap=1e-9")
    with pytest.raises(RankError, match="max_logprob_gap"):
        learn_in_world(1, config)
