"""Options of the commands that run a model on one process or many, and how these are started and answer."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megalm import launch
from megalm.errors import UserError

if TYPE_CHECKING:
    from megalm.generate.request import ModelRequest

Checkpoint = Annotated[
    str, typer.Argument(help="Run directory, or one of its checkpoints.", metavar="CHECKPOINT")
]
Step = Annotated[
    str | None, typer.Option(help="Checkpoint of this step, or `best`; default: the last good one.")
]
TensorParallel = Annotated[int, typer.Option(help="Ranks that share each matrix.")]
PipelineParallel = Annotated[int, typer.Option(help="Stages that share the layers.")]
DType = Annotated[str, typer.Option(help="fp32, bf16 or fp64.")]
Nproc = Annotated[
    int | None, typer.Option("--nproc", min=1, help="Start this many processes on this machine.")
]


def start_world(context: typer.Context, nproc: int, interactive: bool = False) -> None:
    """Hand this same command, less `--nproc`, to `nproc` processes and end with their exit code; one needs no launcher."""
    if nproc > 1:
        raise typer.Exit(launch.run_local(_without_nproc(context.obj), nproc, interactive))


def start_parts(
    context: typer.Context, request: "ModelRequest", nproc: int | None, interactive: bool = False
) -> None:
    """Hand over to `nproc` processes, if they can run the model; where this is one of them, or alone, go on."""
    if nproc is not None and not launch.in_world():
        from megalm.generate.candidates import check_layout

        check_layout(request, nproc)
        start_world(context, nproc, interactive)


def _without_nproc(arguments: list[str]) -> list[str]:
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--nproc":
            next(rest)
        elif not argument.startswith("--nproc="):
            kept.append(argument)
    return kept


def read_lines(path: Path | None, option: str) -> list[str]:
    if path is None:
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option} {path}: {error}") from None
    return [line for line in text.splitlines() if line.strip()]


def print_json(result: Any, wanted: bool) -> None:
    """Print on rank 0 only: the others hold the same result, or none."""
    if wanted and os.environ.get("RANK", "0") == "0":
        print(json.dumps(result))
