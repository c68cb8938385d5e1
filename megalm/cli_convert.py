"""The command `megalm convert`."""

import json
from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[
        Path, typer.Argument(help="Directory of Hugging Face's, or a run or checkpoint of ours.")
    ],
    target: Annotated[Path, typer.Argument(help="Directory to write; it must not exist yet.")],
    to: Annotated[str | None, typer.Option(help="hf or megalm; default: what the source is not.")] = None,
    family: Annotated[
        str | None, typer.Option(help="To hf: the model_type, where several can hold the model.")
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(help="To hf: directory whose config.json gives what the model does not say."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="To hf: fp32, bf16 or fp16; default: as stored.")] = None,
    step: Annotated[int | None, typer.Option(help="Of a run: its checkpoint; default: the newest.")] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Run both models and compare their logits.")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one machine-readable result on stdout.")
    ] = False,
) -> None:
    """Turn models of Hugging Face into checkpoints of ours and back, tokenizer and chat template with them."""
    from megalm.convert.run import convert as run

    report = run(source, target, to, family=family, like=like, dtype=dtype, step=step, compare=check)
    if as_json:
        typer.echo(json.dumps(report))
        return
    compared = ""
    if "difference" in report:
        compared = f"  logits differ by {report['difference']:.1e} (largest {report['largest_logit']:.3g})"
    typer.echo(f"{target}  {report['family']}  {report['parameters']:,} parameters{compared}")
