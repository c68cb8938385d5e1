"""The actor answers prompts, under its training layout or one of its own, on the ranks that train or on others."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from megalm.config import Config
from megalm.engine.base import Engine
from megalm.engine.build import build_engine
from megalm.engine.transfer import WeightTransfer
from megalm.generate.request import GenerationOptions
from megalm.generate.rows import Completion
from megalm.parallel.channel import Channel
from megalm.parallel.layout import create_layout
from megalm.rlhf.copies import Copies, CopiesApart, Write, rollout_config
from megalm.rlhf.prompts import Prompt
from megalm.tokenizer.base import Tokenizer


class Rollout:
    """Writes answers with the weights as they are."""

    def __init__(self, write: Write, config: Config, stop: Sequence[str]) -> None:
        """stop: strings that end an answer."""
        self.write, self.seed = write, config.run.seed
        settings = config.rlhf.rollout
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
        return self.write([prompt.tokens for prompt in prompts], options)


def copies_of(actor: Engine, config: Config, tokenizer: Tokenizer, channel: Channel | None) -> Write:
    """What writes for the ranks that train: the actor itself unless the copies have a layout of their own, or another world.

    channel: to that world. Collective over it. UserError where a layout does not divide the model.
    """
    if channel:
        return CopiesApart(actor, channel)
    training = config.parallel
    sizes = (training.tensor_model_parallel_size, training.pipeline_model_parallel_size)
    if config.rlhf.rollout.sizes(training) == sizes:
        return Copies(actor, config, tokenizer, None)
    own = rollout_config(config)
    engine = build_engine(own, create_layout(own.parallel, config.run.seed), train=False)
    return Copies(engine, config, tokenizer, WeightTransfer(actor, engine))
