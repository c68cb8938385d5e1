"""Which tokens of a step's answers are to become likelier: from the answers' rewards to their tokens' advantages."""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megalm.config import Config
from megalm.rlhf.advantages import gae, group_advantages, leave_one_out_advantages, token_rewards, whiten
from megalm.rlhf.answers import Answers
from megalm.rlhf.kl import kl_per_token
from megalm.rlhf.losses import Aggregation, token_weights


@dataclass(frozen=True)
class Credit:
    """advantages_BS, and returns_BS where a critic learns. level_groups: share of the groups whose answers are worth the same."""

    advantages_BS: Tensor
    returns_BS: Tensor | None = None
    level_groups: float | None = None


def credit_of(config: Config, scores_B: Tensor, answers: Answers, kl_coefficient: float) -> Credit:
    """The advantages of all answers of a step, float64, by the run's task.

    scores_B: what each answer is worth. kl_coefficient: of the penalty, where it is part of the reward.
    """
    kl, policy, mask_BS = config.rlhf.kl, config.rlhf.policy, answers.mask
    kl_BS = torch.zeros(mask_BS.shape, dtype=torch.float64)
    if kl.coefficient and not penalty_is_in_loss(config):
        kl_BS = kl_per_token(_score(answers, "old"), _score(answers, "reference"), mask_BS, kl.estimator)
    if config.task == "ppo":
        rewards_BS = token_rewards(scores_B, kl_BS, mask_BS, kl_coefficient)
        values_BS = _score(answers, "values")
        advantages_BS, returns_BS = gae(rewards_BS, values_BS, mask_BS, policy.gamma, policy.lam)
        if policy.whiten:
            advantages_BS = whiten(advantages_BS, mask_BS)
        return Credit(advantages_BS, returns_BS)
    worth_B = scores_B - kl_coefficient * kl_BS.sum(1)
    size = config.rlhf.rollout.responses_per_prompt
    if config.task == "rloo":
        advantages_B, level = leave_one_out_advantages(worth_B, size)
    else:
        advantages_B, level = group_advantages(worth_B, size, policy.divide_by_std)
    advantages_BS = advantages_B[:, None].where(mask_BS, 0.0)
    return Credit(advantages_BS, None, level * size / len(worth_B))


def penalty_is_in_loss(config: Config) -> bool:
    """Whether the KL is a part of the loss, not of the reward."""
    placement = config.rlhf.kl.placement
    return placement == "loss" or (placement == "auto" and config.task == "grpo")


def token_shares(config: Config, answers: Answers) -> dict[str, NDArray[np.float32]]:
    """How much each token of an update's answers counts in the loss, and its share of what that is divided by."""
    policy, mask_BS = config.rlhf.policy, answers.mask
    aggregation = policy.aggregation
    if aggregation == "auto":
        aggregation = "constant_length" if config.task == "rloo" else "token_mean"
        if policy.ratio == "sequence":
            aggregation = "sequence_mean"
    weights_BS, _ = token_weights(mask_BS, cast(Aggregation, aggregation), config.rlhf.rollout.max_new_tokens)
    divisors_BS = weights_BS
    if aggregation == "constant_length":
        divisors_BS, _ = token_weights(mask_BS, "sequence_mean")
    return {"weights": weights_BS.numpy(), "divisors": divisors_BS.numpy()}


def _score(answers: Answers, name: str) -> Tensor:
    return torch.from_numpy(answers.scores[name]).double()
