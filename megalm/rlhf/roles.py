"""The models of reinforcement learning: the actor learns and answers, the critic learns, reward models and reference are frozen."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from megalm.checkpoint.apart import Apart
from megalm.config import Config
from megalm.config.rlhf_checks import has_reference
from megalm.config.rlhf_ranks import CRITIC, FROZEN
from megalm.engine.base import Engine
from megalm.engine.build import build_engine
from megalm.parallel.channel import Channel
from megalm.parallel.layout import Layout
from megalm.rlhf.critic import Critic, CriticApart, load_critic
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

EMA = "ema"


@dataclass
class Roles:
    """All engines of a run. critic: of task `ppo`. ema: the moving average of the actor's weights. rewards: by title."""

    actor: Engine
    critic: Critic | CriticApart | None = None
    reference: ReferenceScore | None = None
    ema: Engine | None = None
    rewards: dict[str, Score] = field(default_factory=dict)

    @property
    def companions(self) -> dict[str, Engine | Apart]:
        """What a checkpoint holds beside the actor."""
        found: dict[str, Engine | Apart] = {CRITIC: self.critic.engine} if self.critic else {}
        return found | ({EMA: self.ema} if self.ema is not None else {})

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
    config: Config,
    layout: Layout,
    tokenizer: Tokenizer,
    actor: Engine,
    fresh: bool,
    apart: Mapping[str, Channel],
) -> tuple[Roles, list[str]]:
    """Build what the actor's run needs beside it, and say what there is to know. Collective.

    fresh: the run begins, so that the critic takes the weights of a checkpoint. apart: to the worlds of roles that have ranks of
    their own. Raises UserError, naming the role, for a checkpoint
    that is none, of another tokenizer, or that the layout does not divide.
    """
    roles, notices = Roles(actor), []
    frozen, critic = apart.get(FROZEN), apart.get(CRITIC)
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
        roles.critic = CriticApart(critic) if critic else load_critic(config, layout, tokenizer)
        if fresh:
            notices += roles.critic.begin()
    if config.rlhf.policy.ema_decay:
        own = config.model_copy(deep=True)
        own.engine, own.parallel.zero_stage = "megatron", 0
        if own.precision.dtype != "fp64":
            own.precision.dtype = "fp32"
        roles.ema = build_engine(own, layout, train=False)
        for chunk in roles.ema.chunks:
            chunk.requires_grad_(False)
    return roles, notices
