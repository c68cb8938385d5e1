"""What `megalm dataset build --chat` needs on the command line."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megalm.errors import UserError

if TYPE_CHECKING:
    from megalm.dataset.chat import ChatSettings

EXAMPLES = 10

ChatTemplateOption = Annotated[
    str | None,
    typer.Option(
        help="--chat: a .jinja file or a bundled template (alpaca, chatml, llama-2, llama-3, plain, zephyr); by default the "
        "tokenizer's own."
    ),
]


def chat_settings(
    chat_format: str | None, tokenizer: Path, template: str | None, options: dict[str, Any]
) -> "ChatSettings | None":
    """The settings of a build of conversations, None where --chat is not given; UserError for options that need it."""
    given = {name: value for name, value in options.items() if value is not None}
    if chat_format is None:
        if template is not None:
            given["chat_template"] = template
        if given:
            raise UserError(f"--{next(iter(given)).replace('_', '-')} is for conversations: add --chat auto")
        return None
    from megalm.dataset.chat import ChatSettings

    return ChatSettings.of(tokenizer, template, format=chat_format, **given)


def refuse_useless(**given: bool) -> None:
    """UserError for an option of texts that was given with conversations."""
    for name, is_given in given.items():
        if is_given:
            option = name.replace("_", "-")
            raise UserError(
                f"--{option} does nothing with --chat, whose template writes the samples; leave it out"
            )


def tell_left_out(prefix: Path, records: dict[str, Any]) -> None:
    """Say on stderr what a build of conversations left out or changed, with examples."""
    found = next((record["conversations"] for record in records.values() if "conversations" in record), None)
    if not found or not (found["left_out"] or found["changed"]):
        return
    from megalm.dataset.chat_notes import examples, left_out_path, told

    path = left_out_path(prefix)
    left_out = found["read"] - found["kept"]
    if left_out:
        typer.echo(f"{left_out} of {found['read']} records left out: {told(found['left_out'])}", err=True)
    for line in examples(path, EXAMPLES):
        typer.echo(f"  {line}", err=True)
    if found["changed"]:
        changed = sum(found["changed"].values())
        typer.echo(f"{changed} shortened to max_length ({told(found['changed'])})", err=True)
    typer.echo(f"all are named in {path}", err=True)
