"""Arguments and options that the commands on data share, and how their results are printed."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from megalm.errors import UserError

Inputs = Annotated[
    list[Path], typer.Argument(help="JSONL or text files (.gz, .zst too), or directories of them.")
]
TokenizerPath = Annotated[
    Path, typer.Argument(help="Tokenizer: a directory, or a file of any kind that is read.")
]
TokenizerOption = Annotated[
    Path, typer.Option("--tokenizer", help="Tokenizer: a directory or a tokenizer.json.")
]
TextKey = Annotated[str, typer.Option(help="Key of a JSON line that holds the text.")]
SampleBy = Annotated[
    str, typer.Option(help="What a document of a text file is: document (all of it), paragraph or line.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what another build left there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one machine-readable result on stdout.")]


def read_stdin() -> str:
    """Return the text of standard input as it stands, line ends too; UserError where it is not UTF-8."""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"standard input is not UTF-8 (byte {error.start}: {error.reason}); convert it first"
        ) from error


def print_result(as_json: bool, result: dict[str, Any]) -> None:
    """Print `result` as one JSON object, or a line for each of its entries."""
    if as_json:
        typer.echo(json.dumps(result))
        return
    for name, value in result.items():
        if isinstance(value, dict):
            for inner, entry in value.items():
                typer.echo(f"{name}.{inner}: {entry}")
        else:
            typer.echo(f"{name}: {value}")
