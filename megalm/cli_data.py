"""The commands `megalm dataset ...`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from megalm.cli_options import (
    AsJson,
    Inputs,
    Overwrite,
    SampleBy,
    TextKey,
    TokenizerOption,
    print_result,
)

dataset_app = typer.Typer(help="Turn documents into token files, and look into them.", no_args_is_help=True)

Prefix = Annotated[Path, typer.Argument(help="Dataset: its path without .bin/.idx.")]


@dataset_app.command("build")
def build(
    inputs: Inputs,
    tokenizer: TokenizerOption,
    output_prefix: Annotated[
        Path, typer.Option("--output-prefix", "-o", help="Gives PREFIX_train, _valid and _test.")
    ],
    workers: Annotated[int | None, typer.Option(help="Processes; by default one for each CPU.")] = None,
    splits: Annotated[str, typer.Option(help="Shares of train, valid and test.")] = "98,1,1",
    seed: Annotated[int, typer.Option(help="Of the order of documents.")] = 0,
    append_eod: Annotated[bool, typer.Option(help="End each document with the end token.")] = True,
    text_key: TextKey = "text",
    sample_by: SampleBy = "document",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Tokenize, split and shuffle documents; repeat the command to go on after a kill."""
    from megalm.dataset import build_dataset

    records = build_dataset(
        inputs,
        tokenizer,
        output_prefix,
        workers=workers,
        splits=splits,
        seed=seed,
        append_eod=append_eod,
        text_key=text_key,
        sample_by=sample_by,  # type: ignore[arg-type]  # checked by build_dataset
        overwrite=overwrite,
        progress=True,
    )
    if as_json:
        print_result(True, records)
        return
    for name, record in records.items():
        typer.echo(f"{output_prefix}_{name}  {record['documents']:,} documents  {record['tokens']:,} tokens")


@dataset_app.command("merge")
def merge(
    prefixes: Annotated[list[Path], typer.Argument(help="Datasets: their paths without .bin/.idx.")],
    output_prefix: Annotated[
        Path, typer.Option("--output-prefix", "-o", help="Path of the new dataset without .bin/.idx.")
    ],
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Join datasets into one."""
    from megalm.dataset import merge as merge_datasets

    print_result(
        as_json, {"prefix": str(output_prefix), **merge_datasets(prefixes, output_prefix, overwrite)}
    )


@dataset_app.command("info")
def dataset_info(prefix: Prefix, as_json: AsJson = False) -> None:
    """Print type, counts and origin of a dataset."""
    from megalm.dataset import info

    print_result(as_json, info(prefix))


@dataset_app.command("verify")
def verify(prefix: Prefix, as_json: AsJson = False) -> None:
    """Read a whole dataset and check it against its index and sidecar."""
    from megalm.dataset import verify as verify_dataset

    print_result(as_json, verify_dataset(prefix))


@dataset_app.command("show")
def show(
    prefix: Prefix,
    tokenizer: TokenizerOption,
    document: Annotated[int, typer.Option(help="Number of the first document, from 0.")] = 0,
    count: Annotated[int, typer.Option(help="How many documents.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Print documents of a dataset as text."""
    from megalm.dataset import show as show_documents
    from megalm.tokenizer import load_tokenizer

    documents = show_documents(prefix, load_tokenizer(tokenizer), document, count)
    if as_json:
        typer.echo(json.dumps({"documents": documents}))
        return
    for entry in documents:
        typer.echo(f"--- document {entry['document']}, {entry['tokens']} tokens\n{entry['text']}")
