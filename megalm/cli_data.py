"""The commands `megalm tokenizer ...` and `megalm dataset ...`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

tokenizer_app = typer.Typer(help="Train tokenizers and use them.", no_args_is_help=True)
dataset_app = typer.Typer(help="Turn documents into token files, and look into them.", no_args_is_help=True)

Inputs = Annotated[
    list[Path], typer.Argument(help="JSONL or text files (.gz, .zst too), or directories of them.")
]
Prefix = Annotated[Path, typer.Argument(help="Dataset: its path without .bin/.idx.")]
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
AsJson = Annotated[bool, typer.Option("--json", help="Print one machine-readable result.")]
Text = Annotated[str | None, typer.Argument(help="Read from standard input if left out.")]


@tokenizer_app.command("train")
def train(
    inputs: Inputs,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory for tokenizer.json and megalm.json.")
    ],
    vocab_size: Annotated[int, typer.Option(help="Number of tokens, special ones included.")],
    special_token: Annotated[
        list[str] | None, typer.Option(help="Another special token; may be repeated.")
    ] = None,
    text_key: TextKey = "text",
    sample_by: SampleBy = "document",
    sample_bytes: Annotated[int | None, typer.Option(help="Train on about so many bytes of text.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the tokenizer that is there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a byte-level BPE tokenizer."""
    from megalm.tokenizer import train_bpe

    tokenizer = train_bpe(
        inputs,
        vocab_size,
        output,
        special_tokens=special_token or (),
        text_key=text_key,
        sample_by=sample_by,  # type: ignore[arg-type]  # checked by train_bpe
        sample_bytes=sample_bytes,
        overwrite=overwrite,
        progress=sys.stderr.isatty(),
    )
    _print(as_json, {"output": str(output), **_describe(tokenizer)})


@tokenizer_app.command("encode")
def encode(tokenizer: TokenizerPath, text: Text = None, as_json: AsJson = False) -> None:
    """Print the token ids of a text."""
    from megalm.tokenizer import load_tokenizer

    ids = load_tokenizer(tokenizer).encode(sys.stdin.read() if text is None else text)
    typer.echo(json.dumps({"ids": ids}) if as_json else " ".join(map(str, ids)))


@tokenizer_app.command("decode")
def decode(
    tokenizer: TokenizerPath,
    ids: Annotated[
        list[int] | None, typer.Argument(help="Token ids; read from standard input if left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the text of token ids."""
    from megalm.errors import UserError
    from megalm.tokenizer import load_tokenizer

    try:
        ids = ids or [int(word) for word in sys.stdin.read().split()]
    except ValueError as error:
        raise UserError(
            f"the ids to decode are not whole numbers ({error}); separate them by spaces"
        ) from error
    text = load_tokenizer(tokenizer).decode(ids)
    typer.echo(json.dumps({"text": text}) if as_json else text)


@tokenizer_app.command("convert")
def convert(
    source: TokenizerPath,
    output: Annotated[Path, typer.Argument(help="Directory of the new tokenizer.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the tokenizer that is there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Save a tokenizer of any kind in Hugging Face's format."""
    from megalm.tokenizer.export import convert_tokenizer

    tokenizer = convert_tokenizer(source, output, overwrite)
    _print(as_json, {"output": str(output), **_describe(tokenizer)})


@tokenizer_app.command("info")
def tokenizer_info(tokenizer: TokenizerPath, as_json: AsJson = False) -> None:
    """Print a tokenizer's size, end token and hash."""
    from megalm.tokenizer import load_tokenizer

    _print(as_json, _describe(load_tokenizer(tokenizer)))


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
        _print(True, records)
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

    _print(as_json, {"prefix": str(output_prefix), **merge_datasets(prefixes, output_prefix, overwrite)})


@dataset_app.command("info")
def dataset_info(prefix: Prefix, as_json: AsJson = False) -> None:
    """Print type, counts and origin of a dataset."""
    from megalm.dataset import info

    _print(as_json, info(prefix))


@dataset_app.command("verify")
def verify(prefix: Prefix, as_json: AsJson = False) -> None:
    """Read a whole dataset and check it against its index and sidecar."""
    from megalm.dataset import verify as verify_dataset

    _print(as_json, verify_dataset(prefix))


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


def _describe(tokenizer: Any) -> dict[str, Any]:
    return {"vocab_size": tokenizer.vocab_size, "eod_id": tokenizer.eod_id, "hash": tokenizer.hash}


def _print(as_json: bool, result: dict[str, Any]) -> None:
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
