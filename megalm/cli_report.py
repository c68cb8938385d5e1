"""The command `megalm report`."""

from pathlib import Path
from typing import Annotated

import typer

from megalm.cli_options import AsJson, print_result


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run directories, finished or not; several: side by side.", metavar="RUN..."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="HTML file to write; default for one run: RUN/report.html."),
    ] = None,
    card: Annotated[
        Path | None, typer.Option(help="Also write a model card in Markdown here (of one run).")
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            help="Directory of megalm eval whose scores to show beside the runs' own, for instance of a compressed model; "
            "may be given several times."
        ),
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(help="Also write each chart here, as PNG and as SVG.", metavar="DIRECTORY")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw what runs did as one HTML page: curves, configurations, lineage, scores of evaluations, samples, alarms.

    The page needs no other file and no network. Runs that are still going on are drawn as far as they are.
    """
    from megalm.report.make import make_report

    print_result(as_json, make_report(runs, output, card, evaluation or [], plots))
