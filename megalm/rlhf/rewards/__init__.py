"""What answers are rewarded for: rules by name, added up with weights; importing this package loads no torch."""

from megalm.rlhf.rewards.base import Reward, Rule, Sample
from megalm.rlhf.rewards.total import Scores, TotalReward

__all__ = ["Reward", "Rule", "Sample", "Scores", "TotalReward"]
