"""What the user asks of `megalm feedback promote`, checked before anything is loaded; imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megalm.errors import UserError
from megalm.generate.request import ModelRequest, require

Margins = Mapping[str, float]
"""Losses to be excluded, in the metric's own unit, by TASK.METRIC, TASK or "" (all)."""


@dataclass(kw_only=True)
class JudgeRequest(ModelRequest):
    """A candidate (`checkpoint`) and what it is judged by.

    `release`: whose current version it is to replace. `pairs`: files. `evaluations`: of each the directory of the version in service,
    then the candidate's. `margins`: see `benchmarks.Compared`. `certainty`: that it is better on the pairs. `chat_template`: of both; None:
    each model's own. `batch_size`: answers of one forward pass.
    """

    release: Path
    pairs: Sequence[Path]
    evaluations: Sequence[tuple[Path, Path]] = ()
    margins: Margins = field(default_factory=dict)
    certainty: float = 0.95
    chat_template: str | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "certainty", 0.5 <= self.certainty < 1, "from 0.5 to below 1")
        require(self, "batch_size", self.batch_size >= 1, "at least 1")


def parse_margins(given: Sequence[str]) -> dict[str, float]:
    """`VALUE` or `NAME=VALUE` of the command line; UserError for anything else."""
    margins = {}
    for text in given:
        name, _, value = text.rpartition("=")
        try:
            margins[name] = float(value)
        except ValueError:
            margins[name] = -1.0
        if not 0 <= margins[name] < float("inf"):
            raise UserError(
                f"--margin {text!r}: it is a number from 0 on, or TASK=NUMBER, or TASK.METRIC=NUMBER"
            )
    return margins
