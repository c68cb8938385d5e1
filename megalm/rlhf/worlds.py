"""Roles on ranks of their own: which world a process belongs to, and what it does there while the training leads."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from megalm.config import Config
from megalm.config.rlhf_checks import has_reference
from megalm.config.rlhf_ranks import CRITIC, FROZEN, ROLLOUT, own_parallel, ranks_by_world
from megalm.engine.build import build_engine
from megalm.engine.transfer import WeightTransfer
from megalm.parallel.channel import Channel
from megalm.parallel.layout import create_layout, init_process_group
from megalm.parallel.worlds import World, find_world
from megalm.rlhf.copies import Copies, rollout_config
from megalm.rlhf.critic import load_critic
from megalm.rlhf.frozen import REFERENCE, REWARD, load_reference, load_rewards
from megalm.tokenizer.base import Tokenizer
from megalm.train.run import world_size
from megalm.train.stop import StopRequest
from megalm.watch.hang import watching


def join_world(config: Config) -> World | None:
    """Join this process's world, None where all roles share their ranks. UserError where the number of processes does not fit."""
    sizes = ranks_by_world(config, world_size())
    if len(sizes) == 1:
        return None
    parallel = config.parallel
    world = find_world(sizes, timedelta(minutes=parallel.timeout_minutes))
    init_process_group(parallel.backend, parallel.timeout_minutes, world)
    return world


def describe(world: World | None) -> list[str]:
    """What there is to tell of roles on ranks of their own."""
    apart = list(world.sizes.items())[1:] if world else []
    return [f"rlhf.{name} computes apart, processes: {size}" for name, size in apart]


def channels(world: World | None) -> dict[str, Channel]:
    """The training's, to each of the other worlds, whose processes come as soon as they have built their models."""
    if world is None:
        return {}
    return {name: Channel(world, name) for name in world.sizes if name != world.name}


def serve(config: Config, tokenizer: Tokenizer, world: World) -> None:
    """Do what the training asks of this process's role until it ends. SIGTERM is left to the training's ranks, which save first."""
    with StopRequest(torch.device("cpu")):
        {ROLLOUT: _write, FROZEN: _judge, CRITIC: _learn}[world.name](config, tokenizer, world)


def _write(config: Config, tokenizer: Tokenizer, world: World) -> None:
    layout = create_layout(own_parallel(config.parallel, config.rlhf.rollout), config.run.seed)
    engine = build_engine(rollout_config(config), layout, train=False)
    channel = Channel(world, ROLLOUT)
    timeout = timedelta(minutes=config.parallel.timeout_minutes)
    transfer = WeightTransfer(None, engine, channel.over(layout.device, timeout))
    with watching(config.watch, Path(config.run.dir), layout, leads=False):
        channel.serve({"write": Copies(engine, config, tokenizer, transfer)})


def _judge(config: Config, tokenizer: Tokenizer, world: World) -> None:
    own = config.model_copy(deep=True)
    own.parallel = own_parallel(config.parallel, config.rlhf.frozen)
    layout = create_layout(own.parallel, config.run.seed)
    rewards = load_rewards(own, layout, tokenizer)
    handlers: dict[str, Callable[..., Any]] = {f"{REWARD} {title}": score for title, score in rewards.items()}
    if has_reference(config):
        handlers[REFERENCE] = load_reference(own, layout, tokenizer)
    channel = Channel(world, FROZEN)  # whose other end is made after rank 0 watches
    with watching(config.watch, Path(config.run.dir), layout, leads=False):
        channel.serve(handlers)


def _learn(config: Config, tokenizer: Tokenizer, world: World) -> None:
    critic = load_critic(config, None, tokenizer)
    channel = Channel(world, CRITIC)
    with watching(config.watch, Path(config.run.dir), critic.engine.layout, leads=False):
        critic.serve(channel)
