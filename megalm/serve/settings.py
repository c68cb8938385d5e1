"""What a server serves, to whom, and within which limits."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError

from megalm.config.load import explain, override, read_yaml
from megalm.config.section import Section
from megalm.errors import UserError
from megalm.release.file import SUFFIX


class ModelSettings(Section):
    """A model and how its copies run."""

    checkpoint: str = Field(
        description="Run directory, one of its checkpoints, a compressed or converted model, or a release file, whose current version is "
        "served, and taken anew when it changes."
    )
    name: str | None = Field(
        None,
        description="What requests call it; default: the directory's name, or NAME of NAME.release.json.",
    )
    step: str | None = Field(
        None, description="Checkpoint of this step, or `best`; default: the last good one."
    )
    backend: Literal["megalm", "vllm"] = Field(
        "megalm",
        description="What runs it: megalm's own engine, or vLLM, where that is installed, over an export of it.",
    )
    copies: int = Field(
        1,
        ge=1,
        description="Copies of it, each a world of processes of its own; requests go to the least busy.",
    )
    tensor_model_parallel_size: int = Field(
        1, ge=1, description="Processes of a copy that share each matrix."
    )
    pipeline_model_parallel_size: int = Field(
        1, ge=1, description="Processes of a copy that share the layers."
    )
    dtype: Literal["fp32", "bf16", "fp64"] = Field("fp32", description="Precision.")
    chat_template: str | None = Field(
        None, description="Bundled template or .jinja file; default: that of the training data."
    )
    max_rows: int = Field(64, ge=1, description="Texts that a copy writes side by side.")
    cache_gib: float | None = Field(
        None,
        gt=0,
        description="Memory of a process for keys and values, in GiB; default: half of what is free.",
    )
    prefix_share: float = Field(
        0.25, ge=0, lt=1, description="Of that memory, what holds the beginnings of past prompts."
    )

    @property
    def processes(self) -> int:
        """Of a copy, as far as they are ours: vLLM starts its own."""
        if self.backend == "vllm":
            return 1
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size


class WorldSettings(ModelSettings):
    """What the processes of one copy are told. socket: where the front listens."""

    socket: str


class LimitSettings(Section):
    """What a request, and a client, may ask for."""

    max_body_mb: float = Field(4.0, gt=0, description="Size of a request; more is refused (413).")
    body_seconds: float = Field(
        30.0, gt=0, description="Time in which a request must have come in whole (408)."
    )
    request_seconds: float = Field(600.0, gt=0, description="Time after which an answer is given up (504).")
    max_waiting: int = Field(
        256,
        ge=0,
        description="Texts of a model that may wait for room; more are told to come back later (429).",
    )
    max_stops: int = Field(16, ge=0, description="Stop strings of a request.")
    max_stop_length: int = Field(1000, ge=1, description="Characters of a stop string.")
    max_texts: int = Field(32, ge=1, description="Texts of a request: prompts times n.")
    max_moderated: int = Field(200_000, ge=1, description="Characters of a request to /v1/moderations.")
    max_inputs: int = Field(256, ge=1, description="Texts of a request for vectors.")
    requests_per_minute: int | None = Field(
        None, ge=1, description="Of a key; keys may have limits of their own."
    )
    tokens_per_minute: int | None = Field(None, ge=1, description="Of a key: prompts and answers.")


Reason = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class ReasonSettings(Section):
    """What may be said of why an answer is good or bad."""

    up: list[Reason] = Field(["correct", "helpful", "clear", "other"], description="With a thumb up.")
    down: list[Reason] = Field(
        ["wrong", "unsafe", "unhelpful", "style", "other"], description="With a thumb down."
    )


class ServeSettings(Section):
    """A server."""

    models: list[ModelSettings] = Field(default_factory=list, description="The first one is the default.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0: any free one.")
    api_keys: Path | None = Field(
        None, description="File of keys (`megalm serve-keys add`); without one everybody may ask."
    )
    allow_anyone: bool = Field(
        False, description="Listen on other addresses than this machine's without keys."
    )
    page: bool = Field(True, description="Show the web page at `/`.")
    moderation: Path | None = Field(
        None, description="Policy file by which texts are checked; without one none is."
    )
    moderation_log: Path | None = Field(
        None,
        description="File to which findings are added, a JSON line each; the texts' hashes, not the texts.",
    )
    limits: LimitSettings = Field(default_factory=LimitSettings, description="Limits.")
    feedback: str | None = Field(
        None,
        description="Database of what is said of answers: sqlite:///FILE or postgresql://USER@HOST/NAME; without one nothing "
        "is kept.",
    )
    feedback_reasons: ReasonSettings = Field(
        default_factory=ReasonSettings, description="Reasons of ratings."
    )
    drain_seconds: float = Field(
        30.0, ge=0, description="Time that open answers have after SIGTERM; no new ones begin."
    )


def parse_serve_settings(path: Path | None, content: dict[str, Any], changes: list[str]) -> ServeSettings:
    """The settings of a YAML file, with `content` over them and `key=value` over both; UserError with one line."""
    where = str(path) if path else "the server's settings"
    found = read_yaml(path) if path else {}
    if not isinstance(found, dict):
        raise UserError(f"{where}: settings by name are expected, e.g. `port: 8000`")
    try:
        settings = ServeSettings.model_validate(override(found | content, changes))
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, ServeSettings)}") from None
    _check(settings)
    return settings


def name_of(model: ModelSettings) -> str:
    """What requests call it."""
    return model.name or Path(model.checkpoint).resolve().name.removesuffix(SUFFIX)


def _check(settings: ServeSettings) -> None:
    if not settings.models:
        raise UserError("no model to serve: name a checkpoint")
    names = [name_of(model) for model in settings.models]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two models are called {twice[0]!r}: give names, NAME=CHECKPOINT")
    if settings.moderation_log is not None and settings.moderation is None:
        raise UserError("moderation_log without a policy: give --moderation FILE, too")
    is_local = settings.host in ("127.0.0.1", "::1", "localhost")
    if not is_local and settings.api_keys is None and not settings.allow_anyone:
        raise UserError(
            f"on {settings.host} everybody who reaches it could ask: give --api-keys FILE (or --set allow_anyone=true)"
        )
