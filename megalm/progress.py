"""How far this process has come and what it is doing, for whoever watches over it; imports nothing."""

from dataclasses import dataclass


@dataclass
class Progress:
    """count: grows with every sign of life. steps: of this process that are finished. step: of the run. what: is being done."""

    count: int = 0
    steps: int = 0
    step: int = 0
    what: str = "starting"


CURRENT = Progress()
"""This process's, one for all that it does."""


def beat(what: str | None = None) -> None:
    """Tell that work goes on, and of what kind it is now."""
    CURRENT.count += 1
    if what is not None:
        CURRENT.what = what


def begin(step: int) -> None:
    """Tell that a run begins, or goes on from a checkpoint, after this step."""
    CURRENT.steps, CURRENT.step = 0, step
    beat("starting")


def finish_step(step: int | None = None) -> None:
    """Tell that a step is finished, of a run the one of this number."""
    CURRENT.steps += 1
    if step is not None:
        CURRENT.step = step
    beat()
