"""The weighted sum of rewards, and each of them by itself."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megalm.config.rewards import ModelRewardConfig, RewardConfig
from megalm.errors import UserError
from megalm.rlhf.rewards.base import Reward, Sample
from megalm.rlhf.rewards.classifier import ClassifierReward
from megalm.rlhf.rewards.exact_answer import ExactAnswer
from megalm.rlhf.rewards.rules import Format, Length, Stop
from megalm.rlhf.rewards.unit_tests import UnitTests

KINDS: dict[str, Callable[[Any], Reward]] = {
    "exact_answer": ExactAnswer,
    "format": Format,
    "length": Length,
    "stop": Stop,
    "classifier": ClassifierReward,
    "unit_tests": UnitTests,
}


@dataclass(frozen=True)
class Scores:
    """What answers got: the weighted sums, and by title each reward without its weight, all in the samples' order."""

    total: list[float]
    parts: dict[str, list[float]]

    def means(self) -> dict[str, float]:
        """The mean of the sums as `reward`, that of each part as `reward_TITLE`; {} where there are no samples."""
        columns = {"reward": self.total} | {f"reward_{title}": part for title, part in self.parts.items()}
        return {name: math.fsum(column) / len(column) for name, column in columns.items() if column}


class Normalised:
    """(what a model says - mean) / std; 0 and 1 where the configuration has none."""

    def __init__(self, model: Reward, config: ModelRewardConfig) -> None:
        self.model, self.mean, self.std = model, config.mean or 0.0, config.std or 1.0

    def check(self, record: Mapping[str, Any]) -> None:
        """See Reward."""
        self.model.check(record)

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """See Reward."""
        return [(value - self.mean) / self.std for value in self.model(samples)]


class TotalReward:
    """All rewards of a run."""

    def __init__(self, configs: Sequence[RewardConfig], models: Mapping[str, Reward] | None = None) -> None:
        """Make the rules that `configs` name; `models` compute the rewards called `model`, by their titles.

        Raises UserError for no reward at all, and for what a rule finds wrong in its options.
        """
        if not configs:
            raise UserError(
                "rlhf.rewards is empty: name what answers are rewarded for, e.g. [{name: exact_answer}]"
            )
        self.weights = {config.title: config.weight for config in configs}
        self.rewards: dict[str, Reward] = {
            config.title: Normalised((models or {})[config.title], config)
            if isinstance(config, ModelRewardConfig)
            else KINDS[config.name](config)
            for config in configs
        }

    def check(self, records: Sequence[tuple[Mapping[str, Any], str]]) -> None:
        """Raise UserError for the first record whose answers could not be judged; each comes with where it stands."""
        for record, where in records:
            for reward in self.rewards.values():
                try:
                    reward.check(record)
                except UserError as error:
                    raise UserError(f"{where}: {error}") from None

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        """Judge the samples; RuntimeError where a reward is no finite number."""
        parts = {title: reward(samples) for title, reward in self.rewards.items()}
        for title, part in parts.items():
            if not all(map(math.isfinite, part)):
                raise RuntimeError(f"reward `{title}` gave a sample no finite number: {part}")
        columns = [[self.weights[title] * value for value in part] for title, part in parts.items()]
        return Scores([math.fsum(row) for row in zip(*columns, strict=True)], parts)
