"""The command `megalm adapt`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from megalm import launch
from megalm.cli_options import AsJson
from megalm.errors import UserError


def adapt(
    recipe: Annotated[
        str, typer.Argument(help="Recipe of a domain, e.g. configs/adapt/medical.yaml", metavar="RECIPE")
    ],
    base: Annotated[
        str, typer.Argument(help="Run directory or checkpoint to start from.", metavar="CHECKPOINT")
    ],
    files: Annotated[
        list[str],
        typer.Argument(
            help="Files and directories of the domain, and values to change, e.g. replay=0.1 config.optimizer.lr=1e-4",
            metavar="FILE|KEY=VALUE...",
        ),
    ],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Directory for all of it; default runs/adapt_RECIPE.")
    ] = None,
    general: Annotated[
        list[str] | None,
        typer.Option(
            help="General text to replay; may be given several times. Default: the base's own data."
        ),
    ] = None,
    nproc: Annotated[
        int | None, typer.Option("--nproc", min=1, help="Train in this many processes on this machine.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that clean the files.")] = None,
    prepare: Annotated[
        bool,
        typer.Option(
            "--prepare", help="Do all but the training, and tell its configuration (for a cluster)."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Adapt a trained model to the domain of some files: clean, index, train with replay, compare before and after.

    Repeat the command to go on after a kill.
    """
    from megalm.adapt import run

    if launch.in_world():
        raise UserError(
            "megalm adapt starts its own processes: give it --nproc, or --prepare and then run megalm train on the cluster"
        )

    def train(path: Path) -> bool:
        if prepare:
            return False
        if code := launch.run_local(["train", str(path)], nproc or 1):
            raise typer.Exit(code)
        return True

    changes = [name for name in files if "=" in name and not Path(name).exists()]
    result = run.main(
        recipe,
        base,
        [name for name in files if name not in changes],
        output or f"runs/adapt_{Path(recipe).stem}",
        general or [],
        changes,
        train if prepare or (nproc or 1) > 1 else None,
        workers,
    )
    if as_json:
        typer.echo(json.dumps(result))
    elif prepare:
        typer.echo(f"megalm train {result['config']}")
    else:
        typer.echo(run.render(result["before_and_after"]))
