"""Models of reinforcement learning that never change: the reference and the reward models."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from megalm.config import Config
from megalm.config.rewards import ModelRewardConfig
from megalm.engine.base import Engine
from megalm.engine.rest import Resting
from megalm.errors import UserError
from megalm.model.lora import without_adapters
from megalm.parallel.layout import Layout
from megalm.rlhf.answers import Answers, Floats
from megalm.rlhf.rewards import Sample
from megalm.rlhf.scoring import logprobs, token_values
from megalm.tokenizer.base import Tokenizer
from megalm.train.frozen import check_vocabulary, find_frozen, frozen_config, load_frozen

REFERENCE, REWARD = "reference", "reward model"

Score = Callable[[Answers], list[float]]
"""What each of some answers is worth, the same on every rank; collective."""


ReferenceScore = Callable[[Answers, int, float], Floats]
"""Log-probability of each label of answers under the reference, (N, S), the same on every rank; collective.

Called with the answers, rows of a microbatch, and a temperature.
"""


class Reference:
    """Log-probabilities of answers under the frozen model: one of its own, or the actor's without its adapters."""

    def __init__(self, engine: Engine, without: bool, rests: bool = False) -> None:
        """without: the engine's adapters are left out. rests: it rests between its uses."""
        self.engine, self.without = engine, without
        self.awake = _rest(engine) if rests else contextlib.nullcontext

    def __call__(self, answers: Answers, micro_batch_size: int, temperature: float) -> Floats:
        """See ReferenceScore."""
        off = without_adapters(self.engine.chunks) if self.without else contextlib.nullcontext()
        with off, self.awake():
            return logprobs(self.engine, answers, micro_batch_size, temperature)[0]


class RewardModel:
    """What a reward model says at the last token of prompt and answer (see `Score`)."""

    def __init__(self, engine: Engine, micro_batch_size: int, rests: bool = False) -> None:
        """rests: it rests between its uses."""
        self.engine, self.micro_batch_size = engine, micro_batch_size
        self.awake = _rest(engine) if rests else contextlib.nullcontext

    def __call__(self, answers: Answers) -> list[float]:
        """See Score."""
        with self.awake():
            found_NS = token_values(self.engine, answers, self.micro_batch_size)
        return found_NS[range(len(answers)), answers.last].tolist()


class ModelReward:
    """A reward model as one of the rewards (see `rewards.base.Reward`)."""

    def __init__(self, score: Score, rows: Callable[[Sequence[Sample]], Answers]) -> None:
        """rows: brings samples into the form of rows."""
        self.score, self.rows = score, rows

    def check(self, record: object) -> None:
        """It judges any prompt's answers."""

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """The scores, the same on every rank. Collective."""
        return self.score(self.rows(samples))


def load_reference(config: Config, layout: Layout, tokenizer: Tokenizer) -> Reference:
    """The reference that `config` names, as an engine of its own. Collective.

    Raises UserError, naming the role, for a checkpoint that is none, of another tokenizer, or that the layout does not divide.
    """
    checkpoint = find_frozen(str(config.rlhf.kl.reference or config.run.load), REFERENCE)
    check_vocabulary(config, tokenizer, REFERENCE, checkpoint)
    engine = load_frozen(frozen_config(config, REFERENCE, checkpoint, None), layout, checkpoint)
    return Reference(engine, without=False, rests=config.rlhf.offload_frozen)


def reward_models(config: Config) -> list[ModelRewardConfig]:
    """Those of the run's rewards that are models."""
    return [reward for reward in config.rlhf.rewards if isinstance(reward, ModelRewardConfig)]


def load_rewards(config: Config, layout: Layout, tokenizer: Tokenizer) -> dict[str, Score]:
    """The run's reward models by the titles of their rewards. Collective; UserError as in `load_reference`."""
    found: dict[str, Score] = {}
    for reward in reward_models(config):
        checkpoint = find_frozen(reward.checkpoint, REWARD)
        check_vocabulary(config, tokenizer, REWARD, checkpoint)
        settings = frozen_config(config, REWARD, checkpoint, None)
        _check_head(settings, checkpoint)
        engine = load_frozen(settings, layout, checkpoint)
        found[reward.title] = RewardModel(engine, config.batch.micro_batch_size, config.rlhf.offload_frozen)
    return found


def _check_head(settings: Config, checkpoint: Path) -> None:
    if settings.model.sequence_head.outputs != 1:
        raise UserError(
            f"the {REWARD} {checkpoint} gives {settings.model.sequence_head.outputs} numbers for a text, not 1: train it "
            "with task=reward"
        )
    if settings.model.pooling != "last":
        raise UserError(
            f"the {REWARD} {checkpoint} reads the `{settings.model.pooling}` of a text (model.sequence_head.pooling), here it is "
            "read at the last token: train it with `last`"
        )


def _rest(engine: Engine) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Put a frozen engine to rest; the context in which it is awake."""
    resting = Resting(engine)
    resting.offload()
    return resting.awake
