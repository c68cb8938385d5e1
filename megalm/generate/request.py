"""What the user asks of `megalm generate` and `megalm embed`, checked before anything is loaded; imports no torch."""

from dataclasses import dataclass, field

from megalm.errors import UserError

DTYPES = ("fp32", "bf16", "fp64")


@dataclass(kw_only=True)
class GenerationOptions:
    """How prompts are continued; raises UserError where a value makes no sense.

    `temperature`, `top_k` (0: off), `top_p` (1: off) and `repetition_penalty` (1: off) shape the distribution that is
    sampled with `seed`; `greedy` takes the likeliest token instead. `stop`: strings that end a text. `cache`: keep keys
    and values of past tokens.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: list[str] = field(default_factory=list)
    seed: int = 1234
    greedy: bool = False
    cache: bool = True

    def __post_init__(self) -> None:
        require(self, "max_new_tokens", self.max_new_tokens >= 1, "at least 1")
        require(self, "temperature", self.temperature > 0, "above 0 (for the likeliest token use --greedy)")
        require(self, "top_k", self.top_k >= 0, "0 (off) or more")
        require(self, "top_p", 0 < self.top_p <= 1, "above 0 and at most 1 (off)")
        require(self, "repetition_penalty", self.repetition_penalty > 0, "above 0 (1 is off)")
        require(self, "stop", "" not in self.stop, "not empty")


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
    """One batch of prompts for a checkpoint, and how to continue them. `stream`: print a single prompt's text as it comes."""

    prompts: list[str]
    stream: bool = True

    def __post_init__(self) -> None:
        if not self.prompts:
            raise UserError("no prompt given; use --prompt TEXT (repeatable) or --prompt-file FILE")
        GenerationOptions.__post_init__(self)
        ModelRequest.__post_init__(self)


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


def require(request: object, name: str, holds: bool, rule: str) -> None:
    """Raise UserError for the value of `request` called `name` unless the rule `holds`."""
    if not holds:
        raise UserError(f"--{name.replace('_', '-')} is {getattr(request, name)!r}: it must be {rule}")
