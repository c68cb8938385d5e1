"""Task `sft`: supervised fine-tuning, the next token of what the assistant says in conversations."""

from pathlib import Path

from megalm import atomic
from megalm.config.schema import Config, DataSource
from megalm.dataset.opening import open_text
from megalm.dataset.pack_stream import PackStream
from megalm.dataset.sidecar import read_sidecar
from megalm.errors import UserError
from megalm.tokenizer.base import Tokenizer
from megalm.tokenizer.chat import stored_template, template_hash
from megalm.tokenizer.load import TEMPLATE_NAME


def open_conversations(config: Config, sources: list[DataSource], tokenizer: Tokenizer | None) -> PackStream:
    """Open a blend as packs of whole conversations; UserError without tokenizer, for data in which every token counts, and
    for data of another chat template than the other sources' or the tokenizer's.
    """
    if tokenizer is None:
        raise UserError(
            "task `sft` needs the tokenizer for whoever talks to the model later: set tokenizer.path"
        )
    template_of(config)
    stream = open_text(config, sources, tokenizer.hash)
    assert isinstance(stream, PackStream)
    for dataset in stream.datasets:
        if dataset.loss_mask is None:
            raise UserError(
                f"{dataset.prefix} does not say which tokens are answers: build it with `megalm dataset build --chat auto` (or "
                "--prompt-key), or train on all of it with task `pretrain`"
            )
    return stream


def template_of(config: Config) -> dict[str, str] | None:
    """Return the chat template, by name, that the run's data were written with, None where they record none.

    UserError where two sources have different ones, or the tokenizer's own or that of the run so far is another.
    """
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for source in [*config.data.train, *config.data.valid]:
        chat = (read_sidecar(source.path) or {}).get("chat")
        if chat:
            found[chat["template_hash"]] = (source.path, chat["template"])
    if not found:
        return None
    if len(found) > 1:
        paths = " and ".join(path for path, _ in found.values())
        raise UserError(f"{paths} were made with different chat templates: build them with one")
    ((digest, (path, template)),) = found.items()
    own = stored_template(config.tokenizer.path) if config.tokenizer.path else None
    if own is None and set(template) != {"default"}:
        raise UserError(
            f"{path} was made with the chat templates {', '.join(template)} of another tokenizer: set tokenizer.path to "
            "that one"
        )
    of_run = Path(config.run.dir) / "tokenizer"
    written = stored_template(of_run) if of_run.exists() else None
    for place, other in ((config.tokenizer.path, own), (of_run, written)):
        if other is not None and template_hash(other) != digest:
            raise UserError(
                f"{path} was made with another chat template than that of the tokenizer {place}: build it without "
                "--chat-template, or give tokenizer.path a copy of the tokenizer without chat template"
            )
    return template


def carry_template(config: Config, directory: Path) -> None:
    """Put the chat template of the run's data beside the copy of the tokenizer in `directory`, if that has none."""
    template = template_of(config) if config.task in ("sft", "reward", "dpo") else None
    if template is not None and stored_template(directory) is None:
        atomic.write_text(directory / TEMPLATE_NAME, template["default"])
