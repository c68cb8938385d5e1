"""Draws the page of runs: one HTML file that needs no other."""

from collections.abc import Sequence
from pathlib import Path

import megalm
from megalm.html.page import render
from megalm.report.configuration import compare
from megalm.report.curves import families
from megalm.report.evaluations import scores_of
from megalm.report.held_out import calibration_of, confusions_of
from megalm.report.lineage import lineages_of
from megalm.report.notices import notices_of
from megalm.report.run import RunRecord
from megalm.report.samples import LONGEST, tables_of
from megalm.report.summary import facts_of, results_of


def draw_page(runs: Sequence[RunRecord], evaluations: Sequence[Path] = ()) -> str:
    """The page; all that comes from the runs is escaped. evaluations: directories of `megalm eval`, beside the runs' own."""
    scores = scores_of(runs, evaluations)  # it may find damage, which the notices tell
    return render(
        "megalm.report",
        "report.html.jinja",
        {
            "version": megalm.__version__,
            "title": ", ".join(run.name for run in runs),
            "runs": [(run.name, f"run-{place}") for place, run in enumerate(runs)],
            "facts": facts_of(runs),
            "results": results_of(runs),
            "scores": scores,
            "configurations": compare(runs),
            "lineages": lineages_of(runs),
            "families": families(runs),
            "calibration": calibration_of(runs),
            "confusions": confusions_of(runs),
            "samples": tables_of(runs),
            "longest": LONGEST,
            "notices": notices_of(runs),
        },
    )
