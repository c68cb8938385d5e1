"""The commands `megalm dataset build-labelled` and `megalm classify`."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from megalm import atomic, launch
from megalm.cli_model import Checkpoint, DType, Nproc, PipelineParallel, Step, TensorParallel, start_parts
from megalm.cli_options import AsJson, Overwrite, TokenizerOption
from megalm.errors import UserError

Kind = Annotated[
    str | None, typer.Option("--format", help="csv, tsv or jsonl; by default what the files' names say.")
]
PairKey = Annotated[str | None, typer.Option(help="Column of the second text of a pair.")]


def build_labelled(
    inputs: Annotated[list[Path], typer.Argument(help="CSV, TSV or JSONL files (.gz, .zst too).")],
    tokenizer: TokenizerOption,
    output_prefix: Annotated[
        Path, typer.Option("--output-prefix", "-o", help="Gives PREFIX_train, _valid and _test.")
    ],
    text_key: Annotated[
        str,
        typer.Option(help="Column (or key) of the text; a number, from 1, in files without a line of names."),
    ] = "text",
    label_key: Annotated[str, typer.Option(help="Column of the label.")] = "label",
    pair_key: PairKey = None,
    kind: Kind = None,
    labels: Annotated[
        str | None, typer.Option(help="The labels to take, in their order: ham,spam; default: all, sorted.")
    ] = None,
    splits: Annotated[str, typer.Option(help="Shares of train, valid and test.")] = "80,10,10",
    seed: Annotated[int, typer.Option(help="Of the order of documents.")] = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Tokenize texts with a label each, without copies, and split them by text within each class."""
    from megalm.dataset.labelled import Columns
    from megalm.dataset.labelled import build_labelled as build

    names = [name.strip() for name in labels.split(",")] if labels else None
    columns = Columns(text_key, label_key, pair_key)
    result = build(inputs, tokenizer, output_prefix, columns, kind, names, splits, seed, overwrite)
    if as_json:
        typer.echo(json.dumps(result))
        return
    for name, record in result["splits"].items():
        counts = ", ".join(f"{label} {count}" for label, count in record["label_counts"].items())
        typer.echo(f"{output_prefix}_{name}  {record['documents']:,} documents  ({counts})")
    for reason, found in result["left_out"].items():
        more = ", ..." if found["rows"] > len(found["first"]) else ""
        typer.echo(f"left out, {reason}: {found['rows']:,} ({', '.join(found['first'])}{more})")


def classify(
    context: typer.Context,
    checkpoint: Checkpoint,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files of texts: CSV, TSV, JSONL, or a text a line; - or none: standard input.",
            metavar="FILE",
        ),
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text; may be given several times.")] = None,
    text_key: Annotated[
        str, typer.Option(help="Column of the text, as in `dataset build-labelled`.")
    ] = "text",
    label_key: Annotated[
        str | None, typer.Option(help="Column of the true label: measure the predictions, too.")
    ] = None,
    pair_key: PairKey = None,
    kind: Annotated[
        str | None,
        typer.Option("--format", help="csv, tsv, jsonl or lines; by default what the files' names say."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the predictions there as JSON lines.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Texts of one forward pass.")] = 32,
    step: Step = None,
    tensor_model_parallel_size: TensorParallel = 1,
    pipeline_model_parallel_size: PipelineParallel = 1,
    dtype: DType = "fp32",
    nproc: Nproc = None,
    as_json: AsJson = False,
) -> None:
    """Predict the labels of texts with a classifier.

    Each text's label and the probability of every label is a line of JSON on stdout, or in --output.
    """
    from megalm.dataset.labelled import Columns
    from megalm.generate.request import ClassifyRequest
    from megalm.generate.texts import read_texts

    if nproc is not None and nproc > 1 and not launch.in_world() and not (text or inputs):
        raise UserError("several processes cannot share standard input: give a file, or leave --nproc out")
    columns = Columns(text_key, label_key or "", pair_key)
    texts, truth = read_texts(inputs or ([] if text else ["-"]), columns, kind, text or [])
    request = ClassifyRequest(
        checkpoint=checkpoint,
        texts=texts,
        truth=truth,
        batch_size=batch_size,
        step=step,
        tensor_model_parallel_size=tensor_model_parallel_size,
        pipeline_model_parallel_size=pipeline_model_parallel_size,
        dtype=dtype,
    )
    start_parts(context, request, nproc)
    from megalm.generate import classify as prediction

    result = prediction.main(request)
    if os.environ.get("RANK", "0") == "0":
        _report(result, texts, output, as_json)


def _report(result: dict[str, Any], texts: list[tuple[str, ...]], output: Path | None, as_json: bool) -> None:
    lines = [
        json.dumps({"text": pair[0] if len(pair) == 1 else list(pair), **found}, ensure_ascii=False)
        for pair, found in zip(texts, result["predictions"], strict=True)
    ]
    if output is not None:
        atomic.write_text(output, "".join(f"{line}\n" for line in lines))
        del result["predictions"]
    if as_json:
        print(json.dumps(result))
        return
    if output is None:
        print("\n".join(lines))
    if measures := result.get("measures"):
        print(
            f"accuracy {measures['accuracy']:.4f}, macro F1 {measures['macro_f1']:.4f} on {measures['texts']} texts",
            file=sys.stderr,
        )
