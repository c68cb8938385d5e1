"""The copies of the actor that write answers: the actor itself, an engine of another layout, or one in another world."""

from collections.abc import Callable, Sequence
from datetime import timedelta

import torch.distributed as dist

from megalm.config import Config
from megalm.config.checks import check, copies_in
from megalm.config.rlhf_ranks import own_parallel
from megalm.engine.base import Engine
from megalm.engine.transfer import WeightTransfer
from megalm.errors import UserError
from megalm.generate.decode import Generator, context_length
from megalm.generate.request import GenerationOptions
from megalm.generate.rows import Completion
from megalm.generate.share import generate_shared
from megalm.parallel.channel import Channel
from megalm.tokenizer.base import Tokenizer

GIB = 1 << 30

Write = Callable[[Sequence[Sequence[int]], GenerationOptions], list[Completion]]
"""Continues prompts (token ids) with the actor's weights as they are; the same result on every rank; collective."""


class Copies:
    """Copies of the actor on the ranks of this world (see `Write`)."""

    def __init__(
        self, engine: Engine, config: Config, tokenizer: Tokenizer, transfer: WeightTransfer | None
    ) -> None:
        """transfer: brings the actor's weights to `engine`, where that is another one."""
        settings = config.rlhf.rollout
        self.engine, self.transfer = engine, transfer
        self.generator = Generator(
            engine.chunks,
            engine.layout,
            min(context_length(config), config.batch.seq_length),
            tokenizer,
            max_rows=max(settings.max_rows, settings.responses_per_prompt),
            cache_bytes=int(settings.cache_gib * GIB) if settings.cache_gib else None,
        )

    def __call__(self, prompts: Sequence[Sequence[int]], options: GenerationOptions) -> list[Completion]:
        """See Write."""
        if self.transfer:
            self.transfer.run()
        self.engine.gather_weights()
        self.generator.forget()  # the weights have changed
        return generate_shared(self.generator, prompts, options)


class CopiesApart:
    """Copies of the actor in another world, whose handler `write` is its `Copies` (see `Write`)."""

    def __init__(self, actor: Engine, channel: Channel) -> None:
        """Collective over both worlds."""
        timeout = timedelta(minutes=actor.config.parallel.timeout_minutes)
        self.channel = channel
        self.transfer = WeightTransfer(actor, None, channel.over(actor.layout.device, timeout))

    def __call__(self, prompts: Sequence[Sequence[int]], options: GenerationOptions) -> list[Completion]:
        """See Write."""
        self.channel.begin("write", prompts, options)
        self.transfer.run()
        return self.channel.result()


def rollout_config(config: Config) -> Config:
    """Of copies with a layout of their own; UserError where that does not divide the model."""
    own = config.model_copy(deep=True)
    own.engine = "megatron"
    own.parallel = own_parallel(config.parallel, config.rlhf.rollout)
    try:
        check(own)
        copies_in(own.parallel, dist.get_world_size())
    except UserError as error:
        raise UserError(f"the layout of rlhf.rollout: {error}") from None
    return own
