"""What each token of an answer is credited with, by task and settings, against the formulas written out for each answer."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from megalm.config import Config
from megalm.rlhf.answers import Answers, answers_of
from megalm.rlhf.credit import credit_of, penalty_is_in_loss, token_shares
from tests.rlhf import formulas
from tests.rlhf.runs import SEQUENCE, rl_config

PROMPTS = [[5, 6, 7], [5, 6, 7], [8], [8]]
ANSWERS = [[9, 10, 11], [12], [13, 14], list(range(20, 20 + SEQUENCE - 1))]  # the last one fills the context
SCORES = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
BETA = 0.3
GROUPS = (
    "rlhf.rollout.prompts_per_step=2",
    "rlhf.rollout.responses_per_prompt=2",
    "batch.global_batch_size=4",
)


def config_of(task: str, *overrides: str) -> Config:
    return rl_config(Path("run"), Path("base"), task, *GROUPS, *overrides)


def answers_with_scores(config: Config) -> Answers:
    """With garbage beside the answers' tokens."""
    answers = answers_of(PROMPTS, ANSWERS, config)
    random = np.random.default_rng(0)
    for name in ("old", "reference", "values"):
        answers.scores[name] = random.normal(size=answers.tokens_BS.shape).astype(np.float32)
    return answers


def of_answers(answers: Answers, name: str) -> list[list[float]]:
    """A score of each answer's tokens, told by where the answers stand alone."""
    found = answers.scores[name].astype(float)
    places = zip(PROMPTS, ANSWERS, strict=True)
    return [
        found[row, len(prompt) - 1 : len(prompt) - 1 + len(answer)].tolist()
        for row, (prompt, answer) in enumerate(places)
    ]


def kl_of(answers: Answers, estimator: str) -> list[list[float]]:
    pairs = zip(of_answers(answers, "old"), of_answers(answers, "reference"), strict=True)
    return [[formulas.kl(p, q, estimator)[0] for p, q in zip(*pair, strict=True)] for pair in pairs]


def assert_credited(found_BS: torch.Tensor, wanted: list[list[float]]) -> None:
    for row, (prompt, values) in enumerate(zip(PROMPTS, wanted, strict=True)):
        begin = len(prompt) - 1
        assert found_BS[row, begin : begin + len(values)].tolist() == pytest.approx(
            values, rel=1e-6, abs=1e-6
        )
        assert not found_BS[row, :begin].any() and not found_BS[row, begin + len(values) :].any()


def test_answers_stand_behind_their_prompts_and_labels_are_one_token_on() -> None:
    answers = answers_of(PROMPTS, ANSWERS, config_of("ppo"))
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        text, counted = [*prompt, *answer], answers.loss_mask_BS[row] > 0
        assert answers.tokens_BS[row, : len(text)].tolist() == text
        assert answers.labels_BS[row][counted].tolist() == answer
        assert np.flatnonzero(counted)[0] == len(prompt) - 1
        assert answers.last[row] == len(text) - 1 and answers.tokens_BS[row, answers.last[row]] == answer[-1]
    assert answers.lengths.tolist() == [len(answer) for answer in ANSWERS]
    assert answers.tokens_BS.shape[1] == SEQUENCE


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("whiten", [True, False])
def test_ppo_credits_tokens_with_what_follows_them(estimator: str, whiten: bool) -> None:
    """Of the answer that fills the context, too, where nothing is behind the last token."""
    settings = f"rlhf.kl.estimator={estimator}", f"rlhf.policy.whiten={whiten}"
    config = config_of("ppo", *settings, "rlhf.policy.gamma=0.9", "rlhf.policy.lam=0.8")
    answers = answers_with_scores(config)
    credit = credit_of(config, SCORES, answers, BETA)
    advantages, returns = [], []
    kls, values = kl_of(answers, estimator), of_answers(answers, "values")
    for score, kl, value in zip(SCORES.tolist(), kls, values, strict=True):
        rewards = [-BETA * each for each in kl]
        rewards[-1] += score
        advantages.append(formulas.gae(rewards, value, 0.9, 0.8))
        returns.append([a + v for a, v in zip(advantages[-1], value, strict=True)])
    if whiten:
        mean, variance = formulas.mean_and_variance([a for row in advantages for a in row])
        advantages = [[(a - mean) / math.sqrt(variance + 1e-8) for a in row] for row in advantages]
    assert_credited(credit.advantages_BS, advantages)
    assert credit.returns_BS is not None and credit.level_groups is None
    assert_credited(credit.returns_BS, returns)


@pytest.mark.parametrize("placement", ["reward", "loss"])
@pytest.mark.parametrize("task", ["grpo", "rloo"])
def test_groups_are_compared_by_reward_less_penalty(task: str, placement: str) -> None:
    config = config_of(task, f"rlhf.kl.placement={placement}")
    answers = answers_with_scores(config)
    credit = credit_of(config, SCORES, answers, BETA)
    penalty = [BETA * sum(kl) * (placement == "reward") for kl in kl_of(answers, "k1")]
    worth = [score - each for score, each in zip(SCORES.tolist(), penalty, strict=True)]
    wanted = []
    for number, own in enumerate(worth):
        other = worth[number ^ 1]
        deviation = math.sqrt((own - other) ** 2 / 2)
        wanted.append((own - other) / 2 / (deviation + 1e-4) if task == "grpo" else own - other)
    assert_credited(credit.advantages_BS, [[w] * len(a) for w, a in zip(wanted, ANSWERS, strict=True)])
    assert credit.returns_BS is None and credit.level_groups == 0


def test_grpo_without_the_deviation_and_groups_that_are_level() -> None:
    config = config_of("grpo", "rlhf.kl.coefficient=0", "rlhf.policy.divide_by_std=false")
    scores_B = torch.tensor([1.0, 4.0, 2.0, 2.0], dtype=torch.float64)
    credit = credit_of(config, scores_B, answers_of(PROMPTS, ANSWERS, config), 0.0)
    assert_credited(
        credit.advantages_BS, [[w] * len(a) for w, a in zip([-1.5, 1.5, 0, 0], ANSWERS, strict=True)]
    )
    assert credit.level_groups == 0.5


@pytest.mark.parametrize(
    ("task", "placement", "wanted"),
    [("ppo", "auto", 0), ("rloo", "auto", 0), ("grpo", "auto", 1), ("ppo", "loss", 1), ("grpo", "reward", 0)],
)
def test_where_the_penalty_is(task: str, placement: str, wanted: int) -> None:
    assert penalty_is_in_loss(config_of(task, f"rlhf.kl.placement={placement}")) == wanted


SHARES = {
    "tokens": lambda count, total: 1 / total,
    "answers": lambda count, total: 1 / (len(ANSWERS) * count),
    "length": lambda count, total: 1 / (len(ANSWERS) * 8),
}


@pytest.mark.parametrize(
    ("task", "ratio", "aggregation", "share"),
    [
        ("ppo", "token", "auto", "tokens"),
        ("grpo", "token", "auto", "tokens"),
        ("rloo", "token", "auto", "length"),  # its gradient is of the sum over an answer's tokens
        ("grpo", "sequence", "auto", "answers"),
        ("rloo", "sequence", "auto", "answers"),
        ("grpo", "token", "sequence_mean", "answers"),
        ("grpo", "token", "constant_length", "length"),
        ("rloo", "token", "token_mean", "tokens"),
    ],
)
def test_how_much_a_token_counts(task: str, ratio: str, aggregation: str, share: str) -> None:
    config = config_of(task, f"rlhf.policy.ratio={ratio}", f"rlhf.policy.aggregation={aggregation}")
    answers = answers_of(PROMPTS, ANSWERS, config)
    shares = token_shares(config, answers)
    found_BS = torch.from_numpy(shares["weights"] / shares["divisors"].sum())
    counts = [len(answer) for answer in ANSWERS]
    assert_credited(found_BS, [[SHARES[share](count, sum(counts))] * count for count in counts])
