"""What the user asks of `megalm generate` and `megalm embed`, checked before anything is loaded; imports no torch."""

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from megalm.errors import UserError

if TYPE_CHECKING:
    from megalm.generate.answers import Scored

DTYPES = ("fp32", "bf16", "fp64")
LARGEST = 1e9
"""Of what logits are multiplied by or moved by: all of it together leaves them finite in fp32."""


@dataclass(kw_only=True)
class GenerationOptions:
    """How a prompt is continued; raises UserError where a value makes no sense.

    `temperature`, `top_k` (0: off), `top_p` (1: off) and `min_p` (0: off) shape the distribution that is sampled with `seed`;
    `greedy` takes the likeliest token instead. `repetition_penalty` (1: off) counts tokens of prompt and text,
    `presence_penalty` and `frequency_penalty` (0: off) those of the text. `logit_bias`: what is added to tokens' logits.
    `stop`: strings that end a text. `n`: texts of each prompt. `beams`: more than 1 searches that many texts side by side for
    the likeliest ones, by the sum of log-probabilities / length ^ `length_penalty`; `early_stopping` ends as soon as so many
    have ended. `logprobs`: keep the log-probability of each token under the model's own distribution, and of that many of
    the likeliest ones beside it; None: none. `logprobs_at_temperature`: under that distribution at `temperature`.
    `prompt_logprobs`: the same of the prompt's tokens but the first, always at temperature 1; with it `max_new_tokens` may be 0.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    stop: list[str] = field(default_factory=list)
    seed: int = 1234
    greedy: bool = False
    n: int = 1
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    logprobs: int | None = None
    logprobs_at_temperature: bool = False
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        least = 1 if self.prompt_logprobs is None else 0
        require(self, "max_new_tokens", self.max_new_tokens >= least, f"at least {least}")
        require(
            self,
            "temperature",
            1e-6 <= self.temperature < math.inf,
            "at least 1e-6 (for the likeliest token use --greedy)",
        )
        require(self, "top_k", self.top_k >= 0, "0 (off) or more")
        require(self, "top_p", 0 < self.top_p <= 1, "above 0 and at most 1 (off)")
        require(self, "min_p", 0 <= self.min_p <= 1, "from 0 (off) to 1")
        require(
            self,
            "repetition_penalty",
            1 / LARGEST <= self.repetition_penalty <= LARGEST,
            f"from {1 / LARGEST:g} to {LARGEST:g} (1 is off)",
        )
        for name in ("presence_penalty", "frequency_penalty"):
            require(
                self,
                name,
                abs(getattr(self, name)) <= LARGEST,
                f"from {-LARGEST:g} to {LARGEST:g} (0 is off)",
            )
        require(self, "length_penalty", math.isfinite(self.length_penalty), "a finite number")
        require(
            self,
            "logit_bias",
            all(value == -math.inf or abs(value) <= LARGEST for value in self.logit_bias.values()),
            f"numbers from {-LARGEST:g} to {LARGEST:g}, or -inf",
        )
        require(self, "stop", "" not in self.stop, "not empty")
        require(self, "n", self.n >= 1, "at least 1")
        require(self, "beams", self.beams >= 1, "at least 1 (off)")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            require(self, name, value is None or value >= 0, "0 (the tokens alone) or more")
        require(self, "n", self.n == 1 or self.max_new_tokens >= 1, "1 where nothing is written")
        if self.beams > 1:
            require(self, "n", self.n <= self.beams, f"at most the number of beams, {self.beams}")
            off = GenerationOptions(greedy=self.greedy)
            for name in ("temperature", "top_k", "top_p", "min_p", "logprobs", "prompt_logprobs"):
                value = getattr(off, name)
                require(
                    self,
                    name,
                    getattr(self, name) == value,
                    f"left at {value}: beams are searched, not sampled",
                )

    @property
    def rows(self) -> int:
        """Sequences that a prompt is continued as."""
        return max(self.n, self.beams)

    @property
    def counts_tokens(self) -> bool:
        """Whether the choice of a token depends on which came before."""
        return self.repetition_penalty != 1 or bool(self.presence_penalty or self.frequency_penalty)


@dataclass(kw_only=True)
class ModelRequest:
    """Which checkpoint to load, and how; raises UserError where a value makes no sense.

    `checkpoint` is a run directory or one of its checkpoints; `step` picks one of a run directory (`best`: what it
    kept as such; None: the newest intact one). Layout sizes and `dtype` are those of this use, not of the training.
    """

    checkpoint: str
    step: int | str | None = None
    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    dtype: str = "fp32"

    def __post_init__(self) -> None:
        require(self, "tensor_model_parallel_size", self.tensor_model_parallel_size >= 1, "at least 1")
        require(self, "pipeline_model_parallel_size", self.pipeline_model_parallel_size >= 1, "at least 1")
        require(self, "dtype", self.dtype in DTYPES, f"one of {', '.join(DTYPES)}")

    def check_world_size(self, world_size: int) -> None:
        """Refuse a number of processes that is not a multiple of the model's parts."""
        tensor, pipeline = self.tensor_model_parallel_size, self.pipeline_model_parallel_size
        if world_size % (tensor * pipeline):
            raise UserError(
                f"{world_size} process(es) cannot hold tensor_model_parallel_size {tensor} x "
                f"pipeline_model_parallel_size {pipeline} = {tensor * pipeline}; give --nproc {tensor * pipeline}"
            )


@dataclass(kw_only=True)
class GenerateRequest(GenerationOptions, ModelRequest):
    """Prompts for a checkpoint, and how to continue them. `stream`: print a single prompt's text as it comes.

    `max_rows`: texts that a copy of the model writes side by side. `cache_gib`: memory of a process for their keys and values.
    """

    prompts: list[str]
    stream: bool = True
    max_rows: int = 64
    cache_gib: float | None = None

    def __post_init__(self) -> None:
        if not self.prompts:
            raise UserError("no prompt given; use --prompt TEXT (repeatable) or --prompt-file FILE")
        require(self, "max_rows", self.max_rows >= 1, "at least 1")
        require(
            self, "cache_gib", self.cache_gib is None or 0 < self.cache_gib < math.inf, "above 0 and finite"
        )
        GenerationOptions.__post_init__(self)
        ModelRequest.__post_init__(self)


@dataclass(kw_only=True)
class ChatRequest(GenerationOptions, ModelRequest):
    """A conversation with a checkpoint. `chat_template`: a name or file; by default that of the model's training data."""

    system: str | None = None
    chat_template: str | None = None

    def __post_init__(self) -> None:
        GenerationOptions.__post_init__(self)
        ModelRequest.__post_init__(self)

    def options(self, stop: list[str]) -> GenerationOptions:
        """How each answer is written, with these stop strings."""
        names = (one.name for one in fields(GenerationOptions))
        return GenerationOptions(**{name: getattr(self, name) for name in names} | {"stop": stop})

    def check_world_size(self, world_size: int) -> None:
        """Refuse a number of processes other than that of the model's parts: all take part in each answer."""
        super().check_world_size(world_size)
        parts = self.tensor_model_parallel_size * self.pipeline_model_parallel_size
        if world_size != parts:
            raise UserError(
                f"{world_size} processes for a model in {parts} parts: a chat has one copy; give --nproc {parts}"
            )


@dataclass(kw_only=True)
class EmbedRequest(ModelRequest):
    """Texts to turn into vectors by an encoder. `normalize`: to length 1. `batch_size`: texts of one forward pass."""

    texts: list[str]
    normalize: bool = True
    batch_size: int = 32

    def __post_init__(self) -> None:
        if not self.texts:
            raise UserError("no text given; use --text TEXT (repeatable) or --file FILE")
        require(self, "batch_size", self.batch_size >= 1, "at least 1")
        super().__post_init__()


@dataclass(kw_only=True)
class ClassifyRequest(ModelRequest):
    """Texts, or pairs of them, to predict labels of; `truth`: their labels, where they are known. `batch_size`: texts of one
    forward pass."""

    texts: list[tuple[str, ...]]
    truth: list[str | None] = field(default_factory=list)
    batch_size: int = 32

    def __post_init__(self) -> None:
        if not self.texts:
            raise UserError("no text given; name files, use --text TEXT, or pipe texts in")
        require(self, "batch_size", self.batch_size >= 1, "at least 1")
        super().__post_init__()


@dataclass(kw_only=True)
class ScoreRequest(ModelRequest):
    """Records whose answers a reward model scores. `batch_size`: answers of one forward pass. `chat_template`: a name or file;
    by default that of the model's training data."""

    records: list["Scored"]
    batch_size: int = 32
    chat_template: str | None = None

    def __post_init__(self) -> None:
        if not self.records:
            raise UserError("no answer given; name a file with --file, or use --prompt TEXT and --text TEXT")
        require(self, "batch_size", self.batch_size >= 1, "at least 1")
        super().__post_init__()


def require(request: object, name: str, holds: bool, rule: str) -> None:
    """Raise UserError for the value of `request` called `name` unless the rule `holds`."""
    if not holds:
        raise UserError(f"--{name.replace('_', '-')} is {getattr(request, name)!r}: it must be {rule}")
