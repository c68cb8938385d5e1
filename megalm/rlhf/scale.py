"""By what the rewards of reward models are normalised where the configuration does not say."""

from collections.abc import Sequence

from megalm.config.rewards import ModelRewardConfig, RewardConfig
from megalm.rlhf.frozen import REWARD
from megalm.train.frozen import find_frozen
from megalm.train.reward import reward_moments


def scaled(rewards: Sequence[RewardConfig]) -> tuple[list[RewardConfig], list[str]]:
    """Copies in which reward models have mean and standard deviation of their last validation, and a line on each of these."""
    found: list[RewardConfig] = []
    notices = []
    for reward in rewards:
        if isinstance(reward, ModelRewardConfig) and None in (reward.mean, reward.std):
            mean, std = reward_moments(find_frozen(reward.checkpoint, REWARD)) or (0.0, 1.0)
            mean = mean if reward.mean is None else reward.mean
            std = reward.std or std or 1.0
            notices.append(f"reward `{reward.title}`: less {mean:.6g}, over {std:.6g}")
            reward = reward.model_copy(update={"mean": mean, "std": std})
        found.append(reward)
    return found, notices
