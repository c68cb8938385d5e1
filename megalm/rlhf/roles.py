"""The models of reinforcement learning: the actor learns and answers, the critic learns, reward models and reference are frozen."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from megalm.checkpoint import load_weights, read_config
from megalm.checkpoint.metadata import read_tensors
from megalm.config import Config, data_parallel_size
from megalm.config.checks import check
from megalm.config.rewards import ModelRewardConfig
from megalm.config.rlhf_checks import has_reference
from megalm.config.schema import ParallelConfig
from megalm.engine.base import Engine
from megalm.engine.build import build_engine
from megalm.errors import UserError
from megalm.model.sequence_head import OUTPUT
from megalm.parallel.channel import Channel
from megalm.parallel.layout import Layout, create_layout
from megalm.rlhf.frozen import (
    REFERENCE,
    REWARD,
    Reference,
    ReferenceScore,
    Score,
    load_reference,
    load_rewards,
    reward_models,
)
from megalm.tokenizer.base import Tokenizer
from megalm.train.frozen import check_vocabulary, find_frozen

CRITIC, EMA = "critic", "ema"


@dataclass
class Roles:
    """All engines of a run. critic: of task `ppo`. ema: the moving average of the actor's weights. rewards: by title."""

    actor: Engine
    critic: Engine | None = None
    reference: ReferenceScore | None = None
    ema: Engine | None = None
    rewards: dict[str, Score] = field(default_factory=dict)

    @property
    def companions(self) -> dict[str, Engine]:
        """What a checkpoint holds beside the actor."""
        return {
            name: engine for name, engine in ((CRITIC, self.critic), (EMA, self.ema)) if engine is not None
        }

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """Let the moving average follow the actor: decay x average + (1 - decay) x weights."""
        assert self.ema is not None
        self.actor.gather_weights()
        for mean, weight in _pairs(self.ema, self.actor):
            mean.lerp_(weight.to(mean.dtype), 1 - decay)

    @torch.no_grad()
    def begin_average(self) -> None:
        """Let the moving average begin with the actor's weights."""
        if self.ema is not None:
            self.actor.gather_weights()
            for mean, weight in _pairs(self.ema, self.actor):
                mean.copy_(weight)


def _pairs(one: Engine, other: Engine) -> Iterator[tuple[Tensor, Tensor]]:
    for mine, theirs in zip(one.chunks, other.chunks, strict=True):
        yield from zip(mine.parameters(), theirs.parameters(), strict=True)


def load_roles(
    config: Config, layout: Layout, tokenizer: Tokenizer, actor: Engine, fresh: bool, frozen: Channel | None
) -> tuple[Roles, list[str]]:
    """Build what the actor's run needs beside it, and say what there is to know. Collective.

    fresh: the run begins, so that the critic takes the weights of a checkpoint. frozen: to the world that has the frozen models,
    where that is another one. Raises UserError, naming the role, for a checkpoint
    that is none, of another tokenizer, or that the layout does not divide.
    """
    roles, notices = Roles(actor), []
    if frozen is not None:
        roles.rewards = {
            one.title: partial(frozen.call, f"{REWARD} {one.title}") for one in reward_models(config)
        }
    else:
        roles.rewards = load_rewards(config, layout, tokenizer)
    if config.rlhf.kl.coefficient:
        if not has_reference(config):
            roles.reference = Reference(actor, without=True)
        elif frozen is not None:
            roles.reference = partial(frozen.call, REFERENCE)
        else:
            roles.reference = load_reference(config, layout, tokenizer)
    if config.task == "ppo":
        roles.critic, told = _load_critic(config, layout, tokenizer, fresh)
        notices += told
    if config.rlhf.policy.ema_decay:
        own = config.model_copy(deep=True)
        own.engine, own.parallel.zero_stage = "megatron", 0
        if own.precision.dtype != "fp64":
            own.precision.dtype = "fp32"
        roles.ema = build_engine(own, layout, train=False)
        for chunk in roles.ema.chunks:
            chunk.requires_grad_(False)
    return roles, notices


def _load_critic(
    config: Config, layout: Layout, tokenizer: Tokenizer, fresh: bool
) -> tuple[Engine, list[str]]:
    path = config.rlhf.critic.load or next(
        (reward.checkpoint for reward in config.rlhf.rewards if isinstance(reward, ModelRewardConfig)),
        config.run.load,
    )
    checkpoint = find_frozen(str(path), CRITIC)
    check_vocabulary(config, tokenizer, CRITIC, checkpoint)
    settings = _critic_config(config, checkpoint)
    own = _layout_of(settings.parallel, layout, config.run.seed)
    engine = build_engine(settings, own)
    if not fresh:
        return engine, []
    load_weights(engine, checkpoint)
    has_head = OUTPUT in read_tensors(checkpoint)
    return engine, [] if has_head else [f"the {CRITIC} {path} has no sequence head: this one's is new"]


def _critic_config(run: Config, checkpoint: Path) -> Config:
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


def _layout_of(parallel: ParallelConfig, actor: Layout, seed: int) -> Layout:
    """The actor's layout where it is the same; else one more over the same ranks."""
    return actor if parallel == actor.config else create_layout(parallel, seed)
