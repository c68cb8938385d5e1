#!/usr/bin/env python3
"""Index a dataset, with the option names of Megatron-LM's tools/preprocess_data.py."""

import sys
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from megalm.dataset import build_dataset
from megalm.errors import UserError


def main(
    input: Annotated[
        list[Path], typer.Option(help="JSONL or text file, or a directory of them; may be repeated.")
    ],
    output_prefix: Annotated[Path, typer.Option(help="Gives PREFIX_train, PREFIX_valid and PREFIX_test.")],
    tokenizer: Annotated[
        Path, typer.Option("--tokenizer", "--tokenizer-model", help="Directory or tokenizer.json.")
    ],
    json_keys: Annotated[str, typer.Option(help="Key of a JSON line that holds the text.")] = "text",
    workers: Annotated[int | None, typer.Option(help="Processes; by default one for each CPU.")] = None,
    append_eod: Annotated[
        bool, typer.Option("--append-eod", help="End each document with the end token.")
    ] = False,
    split: Annotated[str, typer.Option(help="Shares of train, valid and test.")] = "98,1,1",
    seed: Annotated[int, typer.Option(help="Of the order of documents.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what another build left there.")
    ] = False,
) -> None:
    """Tokenize, split and shuffle documents into Megatron's .bin/.idx."""
    try:
        records = build_dataset(
            input,
            tokenizer,
            output_prefix,
            workers=workers,
            splits=split,
            seed=seed,
            append_eod=append_eod,
            text_key=json_keys,
            overwrite=overwrite,
            progress=True,
        )
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    for name, record in records.items():
        typer.echo(f"{output_prefix}_{name}  {record['documents']:,} documents  {record['tokens']:,} tokens")


if __name__ == "__main__":
    typer.run(main)
