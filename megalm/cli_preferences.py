"""The commands `megalm dataset build-preferences` and `megalm score`."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from megalm import atomic
from megalm.cli_model import Checkpoint, DType, Nproc, PipelineParallel, Step, TensorParallel, start_parts
from megalm.cli_options import AsJson, Overwrite, TokenizerOption

TemplateOption = Annotated[
    str | None,
    typer.Option(
        "--chat-template",
        help="A .jinja file or a bundled template (alpaca, chatml, llama-2, llama-3, plain, zephyr); by default that of "
        "the model's training data, else the tokenizer's own.",
    ),
]


def build_preferences(
    inputs: Annotated[list[Path], typer.Argument(help="JSONL or JSON files (.gz, .zst too).")],
    tokenizer: TokenizerOption,
    output_prefix: Annotated[
        Path, typer.Option("--output-prefix", "-o", help="Gives PREFIX_train, _valid and _test.")
    ],
    chat_template: TemplateOption = None,
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


def score(
    context: typer.Context,
    checkpoint: Checkpoint,
    file: Annotated[
        list[Path] | None, typer.Option(help="JSONL or JSON file of conversations or pairs; repeatable.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What the answers of --text are to.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="An answer to --prompt; repeatable.")] = None,
    chat_template: TemplateOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the rewards there as JSON lines.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Answers of one forward pass.")] = 32,
    step: Step = None,
    tensor_model_parallel_size: TensorParallel = 1,
    pipeline_model_parallel_size: PipelineParallel = 1,
    dtype: DType = "fp32",
    nproc: Nproc = None,
    as_json: AsJson = False,
) -> None:
    """Score answers with a reward model (task `reward`).

    Prints a line of JSON for each record: its reward, or of a pair both; of pairs also how often the chosen one is ahead.
    """
    from megalm.generate.answers import read_answers
    from megalm.generate.request import ScoreRequest

    request = ScoreRequest(
        checkpoint=checkpoint,
        records=read_answers(file or [], prompt, text or []),
        batch_size=batch_size,
        chat_template=chat_template,
        step=step,
        tensor_model_parallel_size=tensor_model_parallel_size,
        pipeline_model_parallel_size=pipeline_model_parallel_size,
        dtype=dtype,
    )
    start_parts(context, request, nproc)
    from megalm.generate import score as scoring

    result = scoring.main(request)
    if os.environ.get("RANK", "0") == "0":
        _report(result, output, as_json)


def _report(result: dict[str, Any], output: Path | None, as_json: bool) -> None:
    lines = [json.dumps(found) for found in result["scores"]]
    if output is not None:
        atomic.write_text(output, "".join(f"{line}\n" for line in lines))
        del result["scores"]
    if as_json:
        typer.echo(json.dumps(result))
        return
    if output is None:
        typer.echo("\n".join(lines))
    if "pairs" in result:
        typer.echo(f"chosen answer ahead: {result['accuracy']:.4f} of {result['pairs']} pairs", err=True)
    if result["truncated"]:
        typer.echo(f"{result['truncated']} answers scored without their prompts' start", err=True)
