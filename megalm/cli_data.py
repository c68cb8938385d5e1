"""The commands `megalm dataset ...`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from megalm.cli_chat_data import ChatTemplateOption, chat_settings, refuse_useless, tell_left_out
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
    workers: Annotated[
        int | None, typer.Option(help="Processes, or tasks at a time; by default one for each CPU.")
    ] = None,
    executor: Annotated[
        str | None, typer.Option(help="Deal the build out as tasks, with logs: local, slurm or ray.")
    ] = None,
    tasks: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --executor: how many; by default one for each 4 to 512 MiB, 1000 at most."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="With --executor: its settings, e.g. slurm.partition=cpu.", metavar="KEY=VALUE"
        ),
    ] = None,
    splits: Annotated[str, typer.Option(help="Shares of train, valid and test.")] = "98,1,1",
    seed: Annotated[int, typer.Option(help="Of the order of documents.")] = 0,
    append_eod: Annotated[bool, typer.Option(help="End each document with the end token.")] = True,
    text_key: TextKey = "text",
    sample_by: SampleBy = "document",
    origins: Annotated[
        bool, typer.Option("--origins", help="Record the input and the byte that each document came from.")
    ] = False,
    id_key: Annotated[
        str | None, typer.Option(help="Record the name under this key of a JSON line, too.")
    ] = None,
    prompt_key: Annotated[
        str | None, typer.Option(help="Key of a text that comes first and does not count in the loss.")
    ] = None,
    chat: Annotated[
        str | None,
        typer.Option(
            help="The inputs are conversations: messages, sharegpt, alpaca, prompt, or auto (by the keys of each record)."
        ),
    ] = None,
    chat_template: ChatTemplateOption = None,
    messages_key: Annotated[
        str | None, typer.Option(help="--chat: key of the list of messages, if it has another name.")
    ] = None,
    answer_key: Annotated[
        str | None, typer.Option(help="--chat: key of the answer to --prompt-key, if it has another name.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="--chat: the system's message of conversations without one.")
    ] = None,
    train_on: Annotated[
        str | None,
        typer.Option(
            help="--chat: what counts in the loss: assistant (default), last (its last turn) or all."
        ),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="--chat: most tokens of a sample, the run's batch.seq_length.")
    ] = None,
    too_long: Annotated[
        str | None,
        typer.Option(
            help="--chat: a longer sample is left out (drop, default), loses its end (cut) or its oldest exchanges (oldest)."
        ),
    ] = None,
    max_rejected: Annotated[
        float | None,
        typer.Option(
            help="--chat: refuse if a larger share of the records is bad (default 0.1); 0 is strict."
        ),
    ] = None,
    fim_rate: Annotated[
        float, typer.Option(help="Share of the documents rearranged for filling in the middle.")
    ] = 0.0,
    fim_spm_rate: Annotated[float, typer.Option(help="Of these, the share with the suffix first.")] = 0.5,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Tokenize, split and shuffle documents; repeat the command to go on after a kill."""
    from megalm.dataset import Extras, build_dataset

    where = _executor(executor, workers, tasks, settings)
    options = {
        "messages_key": messages_key,
        "prompt_key": prompt_key if chat else None,
        "answer_key": answer_key,
        "system": system,
        "train_on": train_on,
        "max_length": max_length,
        "too_long": too_long,
        "max_rejected": max_rejected,
    }
    if chat is not None:
        refuse_useless(
            text_key=text_key != "text", sample_by=sample_by != "document", no_append_eod=not append_eod
        )
    settings_of_chat = chat_settings(chat, tokenizer, chat_template, options)
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
        progress=sys.stderr.isatty(),
        extras=Extras(
            origins, id_key, None if chat else prompt_key, fim_rate, fim_spm_rate, settings_of_chat
        ),
        executor=where,
        tasks=tasks,
    )
    if records:
        _print_parts(as_json, output_prefix, records)
        tell_left_out(output_prefix, records)
        return
    jobs = json.loads((output_prefix.with_name(f"{output_prefix.name}.build") / "slurm.json").read_text())
    line = f"submitted as SLURM jobs {', '.join(jobs)}; the same command prints the result when they are done"
    typer.echo(json.dumps({"jobs": jobs}) if as_json else line)


def _executor(kind: str | None, workers: int | None, tasks: int | None, settings: list[str] | None) -> Any:
    """The settings of an executor, None where none is asked for."""
    from megalm.errors import UserError

    if kind is None:
        if tasks or settings:
            raise UserError("--tasks and --set are for an executor: add --executor local, slurm or ray")
        return None
    from megalm.executors.settings import parse_settings

    given = [*(settings or []), f"kind={kind}"]
    return parse_settings([*given, f"workers={workers}"] if workers else given)


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
def dataset_info(
    prefix: Prefix,
    packed: Annotated[
        int | None, typer.Option(min=1, help="How its documents fill packs of so many tokens, too.")
    ] = None,
    long_documents: Annotated[
        str | None, typer.Option(help="With --packed: cut (default), truncate or drop what no pack holds.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print type, counts and origin of a dataset."""
    from megalm.dataset import info
    from megalm.errors import UserError

    if long_documents not in (None, "cut", "truncate", "drop"):
        raise UserError(f"--long-documents is '{long_documents}': choose cut, truncate or drop")
    if long_documents and packed is None:
        raise UserError("--long-documents is for --packed: add that or leave it out")
    print_result(as_json, info(prefix, packed, long_documents or "cut"))  # type: ignore[arg-type]  # checked above


@dataset_app.command("verify")
def verify(prefix: Prefix, as_json: AsJson = False) -> None:
    """Read a whole dataset and check it against its index and sidecar."""
    from megalm.dataset import verify as verify_dataset

    print_result(as_json, verify_dataset(prefix))


@dataset_app.command("split")
def split(
    prefix: Prefix,
    output_prefix: Annotated[
        Path, typer.Option("--output-prefix", "-o", help="Gives PREFIX_train, _valid and _test.")
    ],
    shares: Annotated[
        str | None, typer.Option(help="Consecutive shares of the documents, such as 98,1,1.")
    ] = None,
    documents: Annotated[
        str | None, typer.Option(help="Documents of the first parts, such as 1000,200; the rest is the last.")
    ] = None,
    by_text: Annotated[
        bool, typer.Option("--by-text", help="With --shares: by a hash of the text, as build does it.")
    ] = False,
    tokenizer: Annotated[Path | None, typer.Option(help="Tokenizer of the dataset, for --by-text.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Cut a dataset into several without tokenizing again."""
    from megalm.dataset import split as split_dataset
    from megalm.errors import UserError
    from megalm.tokenizer import load_tokenizer

    if by_text and (tokenizer is None or shares is None):
        raise UserError("--by-text needs --shares and --tokenizer: add them")
    if tokenizer is not None and not by_text:
        raise UserError("--tokenizer is for --by-text: add that or leave it out")
    try:
        numbers = None if documents is None else [int(number) for number in documents.split(",")]
    except ValueError:
        raise UserError(f"--documents is '{documents}': give numbers such as 1000,200") from None
    reader = load_tokenizer(tokenizer) if by_text and tokenizer else None
    records = split_dataset(prefix, output_prefix, shares, numbers, reader, overwrite)
    _print_parts(as_json, output_prefix, records)


@dataset_app.command("show")
def show(
    source: Annotated[Path, typer.Argument(help="Dataset, or the configuration of a run (.yaml).")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="With --sample: settings such as batch.seq_length=2048.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Tokenizer; by default the configuration's or the dataset's own.")
    ] = None,
    document: Annotated[int | None, typer.Option(min=0, help="Number of the first document, from 0.")] = None,
    sample: Annotated[
        int | None, typer.Option(min=0, help="Number of the first training sample, from 0.")
    ] = None,
    valid: Annotated[bool, typer.Option("--valid", help="Samples of the validation blend.")] = False,
    count: Annotated[int, typer.Option(min=1, help="How many documents or samples.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Print documents of a dataset, or samples as training sees them, as text."""
    from megalm.dataset import show as show_documents
    from megalm.dataset.samples import open_for_show, show_samples, tokenizer_of
    from megalm.errors import UserError

    is_config = source.suffix in (".yaml", ".yml")
    if sample is None and not is_config:
        if overrides or valid:
            wrong = f"settings such as {overrides[0]} are" if overrides else "--valid is"
            raise UserError(f"{wrong} for samples: add --sample")
        documents = show_documents(source, tokenizer_of(source, tokenizer), document or 0, count)
        if as_json:
            typer.echo(json.dumps({"documents": documents}))
        else:
            for entry in documents:
                typer.echo(f"--- {_title(entry)}\n{entry['text']}")
        return
    if document is not None:
        raise UserError("--document is for a dataset alone, without --sample: give one of them")
    stream, reader = open_for_show(source, overrides or (), tokenizer, valid)
    samples = show_samples(stream, reader, sample or 0, count)
    if as_json:
        typer.echo(json.dumps({"samples": samples}))
        return
    for entry in samples:
        typer.echo(
            f"=== sample {entry['sample']} of {entry['source']}, {entry['tokens']} tokens, {entry['counted']} labels count"
        )
        for piece in entry["pieces"]:
            typer.echo(f"--- {_title(piece)}\n{piece['text']}")


def _title(entry: dict[str, Any]) -> str:
    """One line on a document or a piece of it."""
    title = f"document {entry['document']}, "
    if "first" in entry:
        title += f"tokens {entry['first']} to {entry['first'] + entry['tokens'] - 1}"
    else:
        title += f"{entry['tokens']} tokens"
    if "counted" in entry:
        title += f", {entry['counted']} count"
    if "label" in entry:
        title += f", label {entry['label']}"
    if "value" in entry:
        title += f", value {entry['value']:g}"
    if "origin" in entry:
        origin = entry["origin"]
        title += f", {origin['path']} byte {origin['offset']}" + (
            f" ({origin['name']})" if origin["name"] else ""
        )
    return title


def _print_parts(as_json: bool, prefix: Path, records: dict[str, Any]) -> None:
    if as_json:
        print_result(True, records)
        return
    for name, record in records.items():
        typer.echo(f"{prefix}_{name}  {record['documents']:,} documents  {record['tokens']:,} tokens")
