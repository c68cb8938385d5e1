"""Rewards for the form of a response: its pattern, its length, how it ended."""

from megalm.config.rewards import FormatConfig, LengthConfig, StopConfig
from megalm.rlhf.rewards.base import Rule, Sample
from megalm.rlhf.rewards.patterns import Pattern


class Format(Rule):
    """1 where the response matches the pattern, else 0."""

    def __init__(self, config: FormatConfig) -> None:
        self.pattern = Pattern(config.pattern)
        self.full_match = config.full_match

    def judge(self, sample: Sample) -> float:
        """See Rule."""
        return float(self.pattern.matches(sample.response, self.full_match))


class Length(Rule):
    """0 up to `target` tokens, then falling by a straight line: to -1 at `limit` and no further, or without end.

    With a limit it is equation 13 of DAPO (arXiv:2503.14476), L_max = limit and L_cache = limit - target.
    """

    def __init__(self, config: LengthConfig) -> None:
        self.config = config

    def judge(self, sample: Sample) -> float:
        """See Rule."""
        target, limit = self.config.target, self.config.limit
        excess = max(0, len(sample.response_tokens) - target)
        if limit is None:
            return -excess / target
        return -min(1.0, excess / (limit - target))


class Stop(Rule):
    """`bonus` for a response that ended by itself, `penalty` for one that was cut off."""

    def __init__(self, config: StopConfig) -> None:
        self.config = config

    def judge(self, sample: Sample) -> float:
        """See Rule."""
        return self.config.bonus if sample.finish_reason == "stop" else self.config.penalty
