"""The critic of task `ppo`: it foretells rewards, on the ranks that train the actor or on some of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megalm.checkpoint import load_weights, read_config
from megalm.checkpoint.apart import Apart, handlers
from megalm.checkpoint.metadata import read_tensors
from megalm.config import Config, data_parallel_size
from megalm.config.checks import check
from megalm.config.rewards import ModelRewardConfig
from megalm.config.rlhf_ranks import CRITIC
from megalm.config.schema import ParallelConfig
from megalm.engine.base import Engine, Metrics
from megalm.engine.build import build_engine
from megalm.errors import UserError
from megalm.model.sequence_head import OUTPUT
from megalm.parallel.channel import Channel
from megalm.parallel.layout import Layout, create_layout
from megalm.rlhf.actor_loss import ValueLoss
from megalm.rlhf.answers import Answers, Floats
from megalm.rlhf.scoring import token_values
from megalm.tokenizer.base import Tokenizer
from megalm.train.frozen import check_vocabulary, find_frozen


class Critic:
    """A critic on this world's ranks. All methods are collective."""

    def __init__(self, engine: Engine, run: Config, checkpoint: Path) -> None:
        """run: of the actor. checkpoint: what it begins with."""
        self.engine, self.checkpoint = engine, checkpoint
        self.relative_rate = engine.config.optimizer.lr / run.optimizer.lr
        self.rows, self.loss = engine.config.batch.micro_batch_size, ValueLoss(run.rlhf.critic.clip)

    def begin(self) -> list[str]:
        """Take the first weights, and say what there is to know."""
        load_weights(self.engine, self.checkpoint)
        has_head = OUTPUT in read_tensors(self.checkpoint)
        return [] if has_head else [f"the {CRITIC} {self.checkpoint} has no sequence head: this one's is new"]

    def values(self, answers: Answers) -> Floats:
        """Of each token, (N, S), the same on every rank."""
        return token_values(self.engine, answers, self.rows)

    def learn(self, batch: Answers, lr: float) -> Metrics:
        """One update on answers with their returns; lr: the actor's."""
        microbatches = [one for _, one in batch.shared_out(self.engine.layout, self.rows)]
        return self.engine.step(microbatches, self.loss, lr * self.relative_rate)

    def serve(self, channel: Channel) -> None:
        """Do what a `CriticApart` asks until it ends."""
        own: dict[str, Callable[..., Any]] = {
            "begin": self.begin,
            "values": self.values,
            "learn": self.learn,
        }
        channel.serve(own | handlers(self.engine))


class CriticApart:
    """A critic in another world, which serves it. All methods are collective over both; see Critic."""

    def __init__(self, channel: Channel) -> None:
        self.channel, self.engine = channel, Apart(channel)

    def begin(self) -> list[str]:
        """See Critic."""
        return self.channel.call("begin")

    def values(self, answers: Answers) -> Floats:
        """See Critic."""
        return self.channel.call("values", answers)

    def learn(self, batch: Answers, lr: float) -> Metrics:
        """See Critic."""
        return self.channel.call("learn", batch, lr)


def load_critic(config: Config, layout: Layout | None, tokenizer: Tokenizer) -> Critic:
    """The critic of a run, whose weights are not those of its checkpoint before it begins. Collective over this world.

    layout: of the actor where that is in this world. Raises UserError for a checkpoint that is none, of another tokenizer, or that
    the layout does not divide.
    """
    path = config.rlhf.critic.load or next(
        (reward.checkpoint for reward in config.rlhf.rewards if isinstance(reward, ModelRewardConfig)),
        config.run.load,
    )
    checkpoint = find_frozen(str(path), CRITIC)
    check_vocabulary(config, tokenizer, CRITIC, checkpoint)
    settings = _config_of(config, checkpoint)
    return Critic(
        build_engine(settings, _layout_of(settings.parallel, layout, config.run.seed)), config, checkpoint
    )


def _config_of(run: Config, checkpoint: Path) -> Config:
    stored, settings = read_config(checkpoint), run.rlhf.critic
    config = run.model_copy(deep=True)
    config.task, config.model = "reward", stored.model
    config.model.vocab_size = run.model.vocab_size
    config.model.sequence_head.outputs = 1
    config.lora.rank = 0
    config.train.freeze, config.train.train_last_layers = [], None
    config.optimizer.lr = settings.lr or run.optimizer.lr
    config.optimizer.min_lr = run.optimizer.min_lr * config.optimizer.lr / run.optimizer.lr
    parallel = config.parallel
    parallel.tensor_model_parallel_size = (
        settings.tensor_model_parallel_size or parallel.tensor_model_parallel_size
    )
    if settings.pipeline_model_parallel_size:
        parallel.pipeline_model_parallel_size = settings.pipeline_model_parallel_size
        parallel.virtual_pipeline_model_parallel_size, parallel.pipeline_layers = 1, None
    if parallel.tensor_model_parallel_size == 1:
        parallel.sequence_parallel = False
    try:
        check(config)
        data_parallel_size(config, dist.get_world_size())
    except UserError as error:
        raise UserError(f"the {CRITIC} {checkpoint} under this run's layout: {error}") from None
    return config


def _layout_of(parallel: ParallelConfig, actor: Layout | None, seed: int) -> Layout:
    """The actor's layout where it is the same; else one more over the ranks of this world."""
    return actor if actor and parallel == actor.config else create_layout(parallel, seed)
