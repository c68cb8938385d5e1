"""The actor answers prompts, under its training layout or one of its own."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch.distributed as dist

from megalm.config import Config
from megalm.config.checks import check, copies_in
from megalm.config.schema import ParallelConfig
from megalm.engine.base import Engine
from megalm.engine.build import build_engine
from megalm.engine.transfer import WeightTransfer
from megalm.errors import UserError
from megalm.generate.decode import Generator, context_length
from megalm.generate.request import GenerationOptions
from megalm.generate.rows import Completion
from megalm.generate.share import generate_shared
from megalm.parallel.layout import create_layout
from megalm.rlhf.prompts import Prompt
from megalm.tokenizer.base import Tokenizer

GIB = 1 << 30


class Rollout:
    """Writes answers with the weights as they are."""

    def __init__(self, engine: Engine, config: Config, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        """stop: strings that end an answer."""
        self.seed = config.run.seed
        settings = config.rlhf.rollout
        own = _own_config(config)
        self.transfer: WeightTransfer | None = None
        if own is not None:
            actor, engine = engine, build_engine(own, create_layout(own.parallel, self.seed), train=False)
            self.transfer = WeightTransfer(actor, engine)
        self.engine = engine
        limit = min(context_length(config), config.batch.seq_length)
        self.generator = Generator(
            engine.chunks,
            engine.layout,
            limit,
            tokenizer,
            max_rows=max(settings.max_rows, settings.responses_per_prompt),
            cache_bytes=int(settings.cache_gib * GIB) if settings.cache_gib else None,
        )
        self.options = GenerationOptions(
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            stop=list(stop),
            n=settings.responses_per_prompt,
            logprobs=0,
            logprobs_at_temperature=True,
        )

    def answer(self, prompts: Sequence[Prompt], step: int) -> list[Completion]:
        """`responses_per_prompt` sampled answers to each, which follow each other; a function of seed, step and place. Collective."""
        digest = hashlib.blake2b(f"rollout {self.seed} {step}".encode(), digest_size=6).digest()
        return self._generate(prompts, replace(self.options, seed=int.from_bytes(digest, "little")))

    def best(self, prompts: Sequence[Prompt]) -> list[Completion]:
        """The likeliest answer to each, token by token. Collective."""
        return self._generate(prompts, replace(self.options, greedy=True, n=1))

    def _generate(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[Completion]:
        if self.transfer:
            self.transfer.run()
        self.engine.gather_weights()
        self.generator.forget()  # the weights have changed
        return generate_shared(self.generator, [prompt.tokens for prompt in prompts], options)


def _own_config(config: Config) -> Config | None:
    """Of the copies that answer where they have a layout of their own; UserError where that does not divide the model."""
    settings, training = config.rlhf.rollout, config.parallel
    tensor = settings.tensor_model_parallel_size or training.tensor_model_parallel_size
    pipeline = settings.pipeline_model_parallel_size or training.pipeline_model_parallel_size
    if (tensor, pipeline) == (training.tensor_model_parallel_size, training.pipeline_model_parallel_size):
        return None
    own = config.model_copy(deep=True)
    own.engine = "megatron"
    own.parallel = ParallelConfig(
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        backend=training.backend,
        timeout_minutes=training.timeout_minutes,
    )
    try:
        check(own)
        copies_in(own.parallel, dist.get_world_size())
    except UserError as error:
        raise UserError(f"the layout of rlhf.rollout: {error}") from None
    return own
