"""Answers of a model that this process and its world hold."""

from collections.abc import Callable, Sequence

from megalm.config import Config
from megalm.engine.base import Engine
from megalm.evaluate.encode import Ids, Pair
from megalm.evaluate.likelihood import likelihoods
from megalm.evaluate.model import Found
from megalm.generate.decode import Generator, context_length
from megalm.generate.request import GenerationOptions
from megalm.generate.share import generate_shared
from megalm.tokenizer import Tokenizer

TEXTS_AT_ONCE = 64
"""Prompts that each copy of the model continues before what it wrote is kept."""


class LoadedModel:
    """A `Source`; all ranks make the same calls, and all are told the same."""

    def __init__(
        self, engine: Engine, config: Config, tokenizer: Tokenizer, batch_size: int, max_rows: int
    ) -> None:
        """batch_size: texts of one forward pass. max_rows: texts that a copy of the model writes side by side."""
        self.engine, self.tokenizer = engine, tokenizer
        self.length, self.rank = context_length(config), engine.layout.rank
        self.batch_size, self.max_rows = batch_size, max_rows
        self.texts_at_once = TEXTS_AT_ONCE * engine.layout.groups.dp_cp.size()
        self._generator: Generator | None = None

    def likelihoods(self, pairs: Sequence[Pair], found: Callable[[Found], None]) -> None:
        """See `Source`."""
        likelihoods(self.engine, pairs, self.length, self.batch_size, found)

    def texts(
        self, prompts: Sequence[Ids], options: GenerationOptions, numbers: Sequence[int]
    ) -> list[list[str]]:
        """See `Source`."""
        if self._generator is None:  # it takes half of the memory that is free
            self._generator = Generator(
                self.engine.chunks,
                self.engine.layout,
                self.length,
                self.tokenizer,
                max_rows=self.max_rows,
            )
        done = generate_shared(self._generator, prompts, options, sequences=numbers)
        each = options.n
        return [[one.text for one in done[i * each : (i + 1) * each]] for i in range(len(prompts))]
