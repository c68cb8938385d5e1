"""Writes the report of runs, and the model card of one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megalm import atomic
from megalm.errors import UserError
from megalm.report.card import write_card
from megalm.report.page import draw_page
from megalm.report.plots import write_plots
from megalm.report.run import read_runs

FILE_NAME = "report.html"


def make_report(
    runs: Sequence[str | Path],
    output: Path | None = None,
    card: Path | None = None,
    evaluations: Sequence[Path] = (),
    plots: Path | None = None,
) -> dict[str, Any]:
    """Write the page of the runs in the directories `runs` to `output` (of one run: RUN/report.html by default), and the card
    of a single run to `card`; return where they are, with the last step of each run. evaluations: directories of `megalm eval` that belong
    to none of the runs, such as those of compressed models; their scores stand beside the runs'. plots: directory for a picture of each chart, as PNG and as SVG.

    Raises UserError for a directory that is no run, and for several runs without an output or with a card.
    """
    records = read_runs(runs)
    if len(records) > 1 and card is not None:
        raise UserError(
            f"--card tells of one model, and {len(records)} runs are named: give it with each by itself"
        )
    if len(records) > 1 and output is None:
        raise UserError(
            "several runs have no directory in common: name the file to write, --output FILE.html"
        )
    page = output or records[0].directory / FILE_NAME
    for path in (page, card):
        if path is not None and path.is_dir():
            raise UserError(f"{path} is a directory: name a file to write, for instance {path / FILE_NAME}")
    atomic.write_text(page, draw_page(records, evaluations))
    if card is not None:
        atomic.write_text(card, write_card(records[0]))
    drawn = write_plots(records, plots, evaluations) if plots is not None else []
    return {
        "report": str(page),
        "plots": [str(path) for path in drawn],
        "card": None if card is None else str(card),
        "runs": {record.name: {"step": record.figures.last_step, "task": record.task} for record in records},
    }
