"""The commands `megalm dataset build-preferences` and `megalm score`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from megalm.cli_chat_data import ChatTemplateOption
from megalm.cli_options import AsJson, Overwrite, TokenizerOption


def build_preferences(
    inputs: Annotated[list[Path], typer.Argument(help="JSONL or JSON files (.gz, .zst too).")],
    tokenizer: TokenizerOption,
    output_prefix: Annotated[
        Path, typer.Option("--output-prefix", "-o", help="Gives PREFIX_train, _valid and _test.")
    ],
    chat_template: ChatTemplateOption = None,
    system: Annotated[str | None, typer.Option(help="The system's text of prompts that have none.")] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Leave out records with more tokens of prompt and answer.")
    ] = None,
    max_rejected: Annotated[
        float, typer.Option(help="Refuse the build where a larger share of the records is bad.")
    ] = 0.1,
    splits: Annotated[str, typer.Option(help="Shares of train, valid and test.")] = "80,10,10",
    seed: Annotated[int, typer.Option(help="Of the order of documents.")] = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Tokenize preferences for tasks `reward` and `dpo`, without copies, and split them by prompt.

    Pairs (chosen and rejected answers), answers with a rating, or answers with a label, true or false.
    """
    from megalm.dataset.chat import ChatSettings
    from megalm.dataset.preferences import build_preferences as build

    settings = ChatSettings.of(
        tokenizer,
        chat_template,
        system=system,
        train_on="last",
        max_length=max_length,
        max_rejected=max_rejected,
    )
    result = build(inputs, tokenizer, output_prefix, settings, splits, seed, overwrite)
    if as_json:
        typer.echo(json.dumps(result))
        return
    for name, record in result["splits"].items():
        typer.echo(
            f"{output_prefix}_{name}  {record['documents']:,} {record['preferences']}  {record['tokens']:,} tokens, "
            f"{record['longest']:,} in the longest answer with its prompt"
        )
    for reason, found in result["left_out"].items():
        more = ", ..." if found["rows"] > len(found["first"]) else ""
        typer.echo(f"left out, {reason}: {found['rows']:,} ({', '.join(found['first'])}{more})")
