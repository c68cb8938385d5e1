"""What validations decide: when a run stops early, and which checkpoint is the best one."""

from typing import Literal

from pydantic import Field

from megalm.config.section import Section
from megalm.errors import UserError

_LESS_IS_BETTER = ("loss", "perplexity")

Mode = Literal["min", "max"]


class EarlyStoppingConfig(Section):
    """Ends a run whose validations get no better."""

    patience: int = Field(
        0, ge=0, description="Stop after so many validations in a row without a better one; 0 is off."
    )
    metric: str = Field(
        "loss",
        description="The validation's figure to look at, as in metrics.jsonl without `valid_`: `loss`, `perplexity`, ...",
    )
    mode: Mode | None = Field(
        None,
        description="Whether less (`min`) or more (`max`) is better; default for losses and perplexity: `min`.",
    )
    min_delta: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="By how much a validation must be better to count as better.",
    )


class KeepBestConfig(Section):
    """Saves a checkpoint at the best validation so far and keeps it, as `checkpoints/best`."""

    metric: str | None = Field(
        None,
        description="The validation's figure to look at, as in metrics.jsonl without `valid_`; default: none is kept.",
    )
    mode: Mode | None = Field(
        None,
        description="Whether less (`min`) or more (`max`) is better; default for losses and perplexity: `min`.",
    )


def mode_of(field: str, metric: str, mode: Mode | None) -> Mode:
    """`min` or `max` as given, or known from the metric's name; UserError where it is neither."""
    if mode is None and not metric.endswith(_LESS_IS_BETTER):
        raise UserError(
            f"{field}.metric {metric}: say whether less or more of it is better, {field}.mode=min or max"
        )
    return mode or "min"
