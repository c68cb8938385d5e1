"""The commands `megalm convert` and `megalm merge`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from megalm.cli_options import AsJson
from megalm.errors import UserError


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="A run or checkpoint of ours, or a directory of Hugging Face's or Megatron-LM's."
        ),
    ],
    target: Annotated[Path, typer.Argument(help="Directory to write; it must not exist yet.")],
    to: Annotated[
        str | None,
        typer.Option(
            help="hf, megalm, megatron-lm, or peft (adapters); default: ours become hf, others megalm."
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Run both models and compare their logits.")
    ] = True,
    step: Annotated[
        str | None, typer.Option(help="Of a run: its checkpoint, or `best`; default: the newest.")
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="To hf: the model_type, where several can hold the model.")
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            help="To hf: directory whose config.json gives what the model does not say. To peft: the model adapted."
        ),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="To hf: fp32, bf16 or fp16; default: as stored.")] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(help="From megatron-lm: tokens without padding; default: as its arguments say."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="From megatron-lm: tokenizer to keep beside the weights.")
    ] = None,
    tensor_ranks: Annotated[
        int | None,
        typer.Option(min=1, help="To megatron-lm: the older form, a file for each of so many ranks."),
    ] = None,
    pipeline_ranks: Annotated[
        int | None, typer.Option(min=1, help="To megatron-lm: the older form, for so many stages.")
    ] = None,
    transformer_impl: Annotated[
        str | None,
        typer.Option(help="To megatron-lm: for its layers of transformer_engine (default) or local."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Turn models of Hugging Face and Megatron-LM into checkpoints of ours and back, with their tokenizers."""
    from megalm.convert.run import convert as run

    report = run(
        source,
        target,
        to,
        compare=check,
        step=step,
        family=family,
        like=like,
        dtype=dtype,
        vocab_size=vocab_size,
        tokenizer=tokenizer,
        tensor_ranks=tensor_ranks,
        pipeline_ranks=pipeline_ranks,
        transformer_impl=transformer_impl,
    )
    if as_json:
        typer.echo(json.dumps(report))
        return
    compared = ""
    if "difference" in report:
        compared = f"  logits differ by {report['difference']:.1e} (largest {report['largest_logit']:.3g})"
    typer.echo(f"{target}  {report['family']}  {report['parameters']:,} parameters{compared}")


def merge(
    sources: Annotated[
        list[Path], typer.Argument(help="Runs or checkpoints of one model, and last the directory to write.")
    ],
    weights: Annotated[
        str | None, typer.Option(help="One for each checkpoint, e.g. 0.7,0.3; default: all alike.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Average checkpoints, or add the adapters of one to what they adapt; the optimizer is left out."""
    from megalm.convert.merge import merge_checkpoints

    if len(sources) < 2:
        raise UserError("name at least one checkpoint and the directory to write")
    *checkpoints, target = sources
    try:
        shares = None if weights is None else [float(part) for part in weights.split(",")]
    except ValueError:
        raise UserError(f"--weights {weights!r} is no list of numbers; write e.g. 0.7,0.3") from None
    report = merge_checkpoints(checkpoints, target, shares)
    line = f"{target}  {len(checkpoints)} merged  {report['parameters']:,} parameters"
    typer.echo(json.dumps(report) if as_json else line)
