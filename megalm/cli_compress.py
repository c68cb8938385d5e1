"""The commands `megalm compress ...`."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megalm.cli_options import AsJson
from megalm.errors import UserError

if TYPE_CHECKING:
    from megalm.compress.methods import Method

compress_app = typer.Typer(
    help="Make a trained model smaller, and measure what that costs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Source = Annotated[str, typer.Argument(help="Run directory, or one of its checkpoints.")]
Target = Annotated[Path, typer.Argument(help="Directory of the new checkpoint; it must not exist yet.")]
Step = Annotated[str | None, typer.Option(help="Of a run: its checkpoint, or `best`; default: the newest.")]
Calibration = Annotated[
    list[Path] | None,
    typer.Option(
        help="Token files (prefix) or text to see what comes into the layers; may be given several times."
    ),
]
CalibrationSamples = Annotated[int, typer.Option(help="Samples of --calibration.")]
HeldOut = Annotated[
    list[Path] | None,
    typer.Option(help="Token files (prefix) or text to measure perplexity on; may be given several times."),
]
HeldOutSamples = Annotated[int, typer.Option(help="Samples of --held-out.")]
Length = Annotated[int | None, typer.Option(help="Tokens of a sample; default: as the model was trained.")]
Dtype = Annotated[str, typer.Option(help="fp32, bf16 or fp64: what is not quantised computes in it.")]
Plot = Annotated[Path | None, typer.Option(help="Draw size, speed and perplexity: .png or .svg.")]


@compress_app.command()
def quantize(
    source: Source,
    target: Target,
    method: Annotated[str, typer.Option(help="int8, int8_dynamic, int4, fp8 or bf16.")] = "int8",
    group_size: Annotated[
        int | None, typer.Option(help="int8, int4: weights that share a scale; default: a row, int4 32.")
    ] = None,
    held_out: HeldOut = None,
    held_out_samples: HeldOutSamples = 64,
    length: Length = None,
    dtype: Dtype = "fp32",
    plot: Plot = None,
    step: Step = None,
    as_json: AsJson = False,
) -> None:
    """Store the weights of linear layers in 8 or 4 bits, or all weights in bf16."""
    from megalm.compress.methods import Quantize

    _compress(
        [(Quantize(method, group_size), target)],
        as_json,
        source=source,
        held_out=held_out or [],
        held_out_samples=held_out_samples,
        length=length,
        dtype=dtype,
        plot=plot,
        step=step,
    )


@compress_app.command()
def prune(
    source: Source,
    target: Target,
    method: Annotated[str, typer.Option(help="wanda or magnitude.")] = "wanda",
    sparsity: Annotated[
        str, typer.Option(help="Share of the weights that become zero, or a pattern such as 2:4.")
    ] = "0.5",
    calibration: Calibration = None,
    calibration_samples: CalibrationSamples = 128,
    held_out: HeldOut = None,
    held_out_samples: HeldOutSamples = 64,
    length: Length = None,
    dtype: Dtype = "fp32",
    plot: Plot = None,
    step: Step = None,
    as_json: AsJson = False,
) -> None:
    """Set the weights of linear layers to zero that matter least."""
    from megalm.compress.masks import Sparsity
    from megalm.compress.methods import Prune

    _compress(
        [(Prune(method, Sparsity.parse(sparsity)), target)],
        as_json,
        source=source,
        calibration=calibration or [],
        calibration_samples=calibration_samples,
        held_out=held_out or [],
        held_out_samples=held_out_samples,
        length=length,
        dtype=dtype,
        plot=plot,
        step=step,
    )


@compress_app.command("drop-layers")
def drop_layers(
    source: Source,
    target: Target,
    layers: Annotated[str | None, typer.Option(help="Numbers of the layers to drop, from 0: 4,5")] = None,
    count: Annotated[int | None, typer.Option(help="Drop so many, those that change least.")] = None,
    by: Annotated[str, typer.Option(help="--count: angular (neighbours) or block_influence.")] = "angular",
    calibration: Calibration = None,
    calibration_samples: CalibrationSamples = 128,
    held_out: HeldOut = None,
    held_out_samples: HeldOutSamples = 64,
    length: Length = None,
    dtype: Dtype = "fp32",
    plot: Plot = None,
    step: Step = None,
    as_json: AsJson = False,
) -> None:
    """Leave out layers; TARGET/distill.yaml is a recipe to train what is left with the whole model as its teacher."""
    from megalm.compress.methods import Drop

    if (layers is None) == (count is None):
        raise UserError("give either --layers, which to drop, or --count, how many")
    _compress(
        [(Drop(None if layers is None else _numbers(layers), count, by), target)],
        as_json,
        source=source,
        calibration=calibration or [],
        calibration_samples=calibration_samples,
        held_out=held_out or [],
        held_out_samples=held_out_samples,
        length=length,
        dtype=dtype,
        plot=plot,
        step=step,
    )


@compress_app.command()
def compare(
    source: Source,
    folder: Annotated[Path, typer.Argument(help="Directory for a checkpoint of each method.")],
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="bf16, int8, int8:64, int8_dynamic, int4, int4:64, fp8, magnitude:0.5, wanda:0.5, wanda:2:4, drop:2, "
            "drop:2:block_influence; may be given several times."
        ),
    ] = None,
    calibration: Calibration = None,
    calibration_samples: CalibrationSamples = 128,
    held_out: HeldOut = None,
    held_out_samples: HeldOutSamples = 64,
    length: Length = None,
    dtype: Dtype = "fp32",
    plot: Plot = None,
    step: Step = None,
    as_json: AsJson = False,
) -> None:
    """Compress in several ways and measure all beside the source."""
    from megalm.compress.methods import parse_method

    if not method:
        raise UserError("name what to compare, e.g. --method int8 --method int4 --method wanda:0.5")
    methods = [parse_method(text) for text in dict.fromkeys(method)]
    _compress(
        [(one, folder / one.name.replace(":", "-")) for one in methods],
        as_json,
        source=source,
        calibration=calibration or [],
        calibration_samples=calibration_samples,
        held_out=held_out or [],
        held_out_samples=held_out_samples,
        length=length,
        dtype=dtype,
        plot=plot,
        step=step,
    )


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--layers {text!r} is no list of numbers; write e.g. 4,5") from None


def _compress(methods: Sequence[tuple["Method", Path]], as_json: bool, **options: Any) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("`megalm compress` works in one process; its checkpoints load under any layout")
    from megalm.compress import run

    report = run.main(run.CompressRequest(**options), methods)
    if as_json:
        typer.echo(json.dumps(report))
        return
    _print_rows(report["rows"])


def _print_rows(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    table = Table("model", "dtype")
    for heading in ("stored", "in memory", "tokens/s", "perplexity", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["name"],
            row["dtype"],
            _figure(row["stored_bytes"], "{:.2f} MB", 1e-6),
            _figure(row["memory_bytes"], "{:.2f} MB", 1e-6),
            _figure(row["tokens_per_second"], "{:.1f}"),
            _figure(row["perplexity"], "{:.4g}"),
            _figure(row["perplexity_change"], "{:+.2f}%", 100.0),
        )
    console.print(table)
    for row in rows[1:]:
        typer.echo(f"{row['checkpoint']}  {_told(row['made'])}")


def _told(made: dict[str, Any]) -> str:
    """What the method says of its work."""
    return "  ".join(f"{key} {_rounded(value)}" for key, value in made.items() if value is not None)


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _figure(value: float | None, form: str, scale: float = 1.0) -> str:
    return "-" if value is None else form.format(value * scale)
