"""How a step's parts hang together: rewards before they are credited, who learns and how often, averages, text beside answers."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from megalm.checkpoint import find_checkpoint
from megalm.generate.rows import Completion
from megalm.rlhf.answers import answers_of
from megalm.rlhf.prompts import Prompt
from megalm.rlhf.roles import Roles
from megalm.rlhf.steps import RlSteps
from megalm.testing import RankError
from tests.checkpoint.stored import assert_equal_tensors, stored_tensors
from tests.rlhf.runs import learn_in_world, make_base, rl_config, step_lines
from tests.train.runs import write_tokens

ONE_STEP = "train.steps=1"
ONE_UPDATE = "batch.global_batch_size=16"
COOL = "rlhf.rollout.temperature=0.7"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(make_base(tmp_path_factory.mktemp("rlhf")))


def steps_of(*overrides: str) -> RlSteps:
    """Of runs of `grpo` without reference or models: what is done with numbers alone."""
    config = rl_config(Path("run"), Path("base"), "grpo", "rlhf.kl.coefficient=0", *overrides)
    nothing = cast(Any, None)
    return RlSteps(config, Roles(nothing), nothing, nothing, nothing, None)


def advantages_of(steps: RlSteps, rewards: list[float]) -> list[float]:
    """Of answers of one token to one prompt."""
    answers = answers_of([[1, 2]] * len(rewards), [[3]] * len(rewards), steps.config)
    steps.judged = [(cast(Prompt, None), cast(Completion, None), reward, {}) for reward in rewards]
    steps._credit(answers)
    return answers.scores["advantages"][:, 1].tolist()


def test_rewards_are_bounded_before_they_are_credited() -> None:
    found = advantages_of(
        steps_of("rlhf.reward_clip=2", "rlhf.policy.divide_by_std=false"), [-9.0, 0.0, 1.0, 9.0]
    )
    assert found == pytest.approx([-2.25, -0.25, 0.75, 1.75])


def test_rewards_are_normalised_by_all_so_far_and_then_bounded() -> None:
    settings = "rlhf.normalize_rewards=true", "rlhf.reward_clip=1", "rlhf.policy.divide_by_std=false"
    steps = steps_of(*settings)
    seen: list[float] = []
    for rewards in ([1.0, 2.0, 3.0, 6.0], [10.0, 2.0, 4.0, 4.0]):
        seen += rewards
        normal = np.clip((np.array(rewards) - np.mean(seen)) / np.std(seen, ddof=1), -1, 1)
        found = advantages_of(steps, rewards)
        assert found == pytest.approx((normal - normal.mean()).tolist(), rel=1e-5)
        state, steps = json.loads(json.dumps(steps.state())), steps_of(*settings)
        steps.load(state)


@pytest.mark.parametrize(
    ("action", "coefficient", "stops"), [("warn", 0.05, 0), ("stop", 0.05, 1), ("adapt", 0.2, 0)]
)
def test_what_an_alarm_does_each_time_it_rings(action: str, coefficient: float, stops: int) -> None:
    config = ("rlhf.kl.coefficient=0.05", f"rlhf.alarms.action={action}")
    steps = steps_of(*config, "rlhf.alarms.max_kl=1", "rlhf.alarms.patience=2")
    told = []
    for kl in (2.0, 2.0, 2.0, 2.0, 0.5):
        steps._watch({"kl": kl, "response_length": 3.0}, 16)
        told.append(len(steps.told))
    rung = 2 if action == "adapt" else 1
    assert told == [0, rung, 0, rung, 0]
    assert steps.kl.coefficient == pytest.approx(coefficient) and (steps.stop_reason is not None) == stops


def test_the_coefficient_follows_the_kl_of_a_steps_answers() -> None:
    steps = steps_of("rlhf.kl.coefficient=0.05", "rlhf.kl.target=4", "rlhf.kl.horizon=160")
    steps._watch({"kl": 4.4, "response_length": 3.0}, 16)
    assert steps.kl.coefficient == pytest.approx(0.05 * (1 + 0.1 * 16 / 160))


@pytest.mark.parametrize("settings", [(), (ONE_UPDATE, "rlhf.kl.coefficient=0")])
def test_training_divides_by_the_temperature_of_sampling(
    tmp_path: Path, folder: Path, settings: tuple[str, ...]
) -> None:
    """In the scores, in the reference's, and in the loss, which alone finds the gap of a single update."""
    learn_in_world(1, rl_config(tmp_path, folder, "grpo", ONE_STEP, COOL, *settings))
    (line,) = step_lines(tmp_path)
    assert 0 < line["logprob_gap"] < 1e-5
    if not settings:
        assert abs(line["kl"]) < 1e-5 and line["entropy"] == pytest.approx(line["sampled_entropy"], rel=0.05)


def test_answering_under_a_layout_of_more_processes_is_refused(tmp_path: Path, folder: Path) -> None:
    config = rl_config(tmp_path, folder, "grpo", "rlhf.rollout.tensor_model_parallel_size=2")
    with pytest.raises(
        RankError, match="the layout of rlhf.rollout: the layout needs a multiple of TP 2 x PP 1"
    ):
        learn_in_world(1, config)


def test_at_first_the_critic_learns_alone(tmp_path: Path, folder: Path) -> None:
    config = rl_config(
        tmp_path, folder, "ppo", "rlhf.critic.warmup_steps=1", "train.steps=2", "checkpoint.interval=1"
    )
    learn_in_world(1, config)
    found = find_checkpoint(tmp_path).parent / "step_00000001"
    before = weights(find_checkpoint(folder / "base"))
    assert_equal_tensors(weights(found), before)
    body = [name for name in before if "output_layer" not in name]
    assert any(not torch.equal(weights(found / "critic")[name], before[name]) for name in body)
    first, second = step_lines(tmp_path)
    assert "policy_loss" not in first and "policy_loss" in second and first["value_loss"] > 0


def test_the_average_follows_each_update(tmp_path: Path, folder: Path) -> None:
    learn_in_world(1, rl_config(tmp_path, folder, "grpo", ONE_STEP, ONE_UPDATE, "rlhf.policy.ema_decay=0.75"))
    checkpoint = find_checkpoint(tmp_path)
    before, after = weights(find_checkpoint(folder / "base")), weights(checkpoint)
    for name, mean in weights(checkpoint / "ema").items():
        torch.testing.assert_close(mean, 0.75 * before[name] + 0.25 * after[name], rtol=1e-6, atol=1e-7)
    assert any(not torch.equal(before[name], after[name]) for name in after)


@pytest.mark.parametrize("epochs", [1, 3])
def test_each_epoch_learns_from_every_token_once(tmp_path: Path, folder: Path, epochs: int) -> None:
    learn_in_world(1, rl_config(tmp_path, folder, "ppo", ONE_STEP, f"rlhf.policy.epochs={epochs}"))
    (line,) = step_lines(tmp_path)
    assert line["weight"] == pytest.approx(epochs * 16 * line["response_length"])


def test_text_is_learned_beside_answers_and_goes_on_where_it_stood(tmp_path: Path, folder: Path) -> None:
    text = f"data.train=[{{path: {folder / 'train'}}}]"
    settings = (text, "rlhf.policy.ptx_coefficient=0.5", "train.steps=2")
    learn_in_world(1, rl_config(tmp_path / "whole", folder, "grpo", *settings))
    for _ in range(2):
        learn_in_world(
            1, rl_config(tmp_path / "parts", folder, "grpo", *settings, "train.exit_after_steps=1")
        )
    whole = step_lines(tmp_path / "whole")
    assert step_lines(tmp_path / "parts") == whole
    for line in whole:
        assert line["ptx_loss"] > 0.5 * np.log(50)  # a random model's, times the coefficient
        parts = line["policy_loss"] + line["kl_penalty_loss"] + line["ptx_loss"]
        assert line["loss"] == pytest.approx(parts, rel=1e-4)


def test_text_is_learned_at_no_temperature(tmp_path: Path, folder: Path) -> None:
    settings = (f"data.train=[{{path: {folder / 'train'}}}]", "rlhf.policy.ptx_coefficient=0.5", ONE_UPDATE)
    found = []
    for name, more in (("warm", ()), ("cool", (COOL,))):
        learn_in_world(1, rl_config(tmp_path / name, folder, "grpo", ONE_STEP, *settings, *more))
        found.append(step_lines(tmp_path / name)[0]["ptx_loss"])
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Of a model, without its optimizer."""
    return {name: one for name, one in stored_tensors(checkpoint).items() if not name.startswith("optimizer")}
