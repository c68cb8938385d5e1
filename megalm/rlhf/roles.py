"""The models of reinforcement learning: the actor learns and answers, the critic learns, reward models and reference are frozen."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from megalm.checkpoint import load_weights, read_config
from megalm.checkpoint.metadata import read_tensors
from megalm.config import Config, data_parallel_size
from megalm.config.checks import check
from megalm.config.rewards import ModelRewardConfig
from megalm.config.schema import ParallelConfig
from megalm.engine.base import Engine, MicroBatch
from megalm.engine.build import build_engine
from megalm.engine.rest import Resting
from megalm.errors import UserError
from megalm.model.gpt import GPT
from megalm.model.lora import without_adapters
from megalm.model.sequence_head import OUTPUT
from megalm.model.token_logprobs import LogprobHead
from megalm.parallel.layout import Layout, create_layout
from megalm.rlhf.actor_loss import values
from megalm.rlhf.answers import Answers, Floats, measure
from megalm.rlhf.rewards import Sample
from megalm.tokenizer.base import Tokenizer
from megalm.train.frozen import check_vocabulary, find_frozen, frozen_config, load_frozen

REFERENCE, CRITIC, REWARD, EMA = "reference", "critic", "reward model", "ema"


class Reference:
    """Log-probabilities of answers under the frozen model: one of its own, or the actor's without its adapters."""

    def __init__(self, engine: Engine, without: bool, rests: bool = False) -> None:
        """without: the engine's adapters are left out. rests: it rests between its uses."""
        self.engine, self.without = engine, without
        self.awake = _rest(engine) if rests else contextlib.nullcontext

    def __call__(self, answers: Answers, micro_batch_size: int, temperature: float) -> Floats:
        """Of each label of the answers, (N, S). Collective."""
        off = without_adapters(self.engine.chunks) if self.without else contextlib.nullcontext()
        with off, self.awake():
            return logprobs(self.engine, answers, micro_batch_size, temperature)[0]


class ModelReward:
    """What a reward model says at the last token of prompt and answer (see `rewards.base.Reward`)."""

    def __init__(
        self,
        engine: Engine,
        micro_batch_size: int,
        row: Callable[[Sequence[Sample]], Answers],
        rests: bool = False,
    ) -> None:
        """row: brings samples into the form of rows. rests: it rests between its uses."""
        self.engine, self.micro_batch_size, self.row = engine, micro_batch_size, row
        self.awake = _rest(engine) if rests else contextlib.nullcontext

    def check(self, record: object) -> None:
        """It judges any prompt's answers."""

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """The scores, the same on every rank. Collective."""
        answers = self.row(samples)
        with self.awake():
            found_NS = token_values(self.engine, answers, self.micro_batch_size)
        return found_NS[range(len(answers)), answers.last].tolist()


def _rest(engine: Engine) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Put a frozen engine to rest; the context in which it is awake."""
    resting = Resting(engine)
    resting.offload()
    return resting.awake


def logprobs(engine: Engine, answers: Answers, micro_batch_size: int, temperature: float) -> Floats:
    """Log-probability of each label of the answers, and the entropy of its distribution, (2, N, S). Collective."""

    def make_head(microbatch: MicroBatch) -> Callable[[GPT, Tensor], Tensor]:
        return LogprobHead(microbatch.labels_BS, microbatch.loss_mask_BS, temperature)

    return measure(engine, answers, micro_batch_size, make_head)


def token_values(engine: Engine, answers: Answers, micro_batch_size: int) -> Floats:
    """What a model with a sequence head says at each token, (N, S). Collective."""
    return measure(engine, answers, micro_batch_size, lambda microbatch: values)


@dataclass
class Roles:
    """All engines of a run. critic: of task `ppo`. ema: the moving average of the actor's weights. rewards: by title."""

    actor: Engine
    critic: Engine | None = None
    reference: Reference | None = None
    ema: Engine | None = None
    rewards: dict[str, Engine] = field(default_factory=dict)

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
    config: Config, layout: Layout, tokenizer: Tokenizer, actor: Engine, fresh: bool
) -> tuple[Roles, list[str]]:
    """Build what the actor's run needs beside it, and say what there is to know. Collective.

    fresh: the run begins, so that the critic takes the weights of a checkpoint. Raises UserError, naming the role, for a checkpoint
    that is none, of another tokenizer, or that the layout does not divide.
    """
    roles, notices = Roles(actor), []
    if config.rlhf.kl.coefficient:
        roles.reference = _load_reference(config, layout, tokenizer, actor)
    for reward in config.rlhf.rewards:
        if isinstance(reward, ModelRewardConfig):
            checkpoint = find_frozen(reward.checkpoint, REWARD)
            check_vocabulary(config, tokenizer, REWARD, checkpoint)
            settings = frozen_config(config, REWARD, checkpoint, None)
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
            roles.rewards[reward.title] = load_frozen(settings, layout, checkpoint)
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


def _load_reference(config: Config, layout: Layout, tokenizer: Tokenizer, actor: Engine) -> Reference:
    if config.lora.rank and config.rlhf.kl.reference is None:
        return Reference(actor, without=True)
    checkpoint = find_frozen(str(config.rlhf.kl.reference or config.run.load), REFERENCE)
    check_vocabulary(config, tokenizer, REFERENCE, checkpoint)
    engine = load_frozen(frozen_config(config, REFERENCE, checkpoint, None), layout, checkpoint)
    return Reference(engine, without=False, rests=config.rlhf.offload_frozen)


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
