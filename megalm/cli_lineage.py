"""The command `megalm lineage`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from megalm.cli_options import AsJson


def lineage(
    path: Annotated[
        Path,
        typer.Argument(help="A run, checkpoint, converted model, dataset (prefix), tokenizer or corpus."),
    ],
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read raw files as well, to compare their hashes with the record."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the tree from a model back to its raw sources, and what is not there any more or has changed since.

    Exit code 1 where something has changed or is missing.
    """
    from megalm.lineage.show import render
    from megalm.lineage.tree import trace

    tree = trace(path, verify)
    typer.echo(json.dumps(tree.to_json()) if as_json else render(tree))
    if any(node.warnings for node in tree.walk()):
        raise typer.Exit(1)
