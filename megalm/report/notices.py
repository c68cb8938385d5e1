"""What runs told: alarms and troubles by themselves, all the rest behind them."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from megalm.html.chart import Shown, first
from megalm.report.run import RunRecord

MOST_NOTICES = 200
_TROUBLE = re.compile(
    r"alarm|skipped|rolled back|no checkpoint to go back|stopped|raised to|the data are not those|damaged|not intact|"
    r"set aside|hang:|is slow"
)
"""As `train` and `rlhf` put what a reader must not miss."""


class Notices(NamedTuple):
    """Of one run: what is wrong with its files, (step, text) of troubles, and of all else."""

    run: str
    damage: list[str]
    troubles: Shown
    others: Shown


def notices_of(runs: Sequence[RunRecord]) -> list[Notices]:
    """Of each run, in the order of the file."""
    found = []
    for run in runs:
        troubles = [event for event in run.figures.events if _TROUBLE.search(event.text)]
        others = [event for event in run.figures.events if not _TROUBLE.search(event.text)]
        found.append(
            Notices(run.name, run.damage, first(troubles, MOST_NOTICES), first(others, MOST_NOTICES))
        )
    return found
