"""What a callback sees of a run, and when it is called."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megalm.config.schema import Config
from megalm.engine.base import Metrics
from megalm.parallel.layout import Layout


@dataclass
class Run:
    """A run as callbacks see it; `step` counts finished steps, skipped ones too.

    facts: what callbacks find out on start and is worth writing down once, e.g. what MFU is measured against.
    """

    config: Config
    layout: Layout
    directory: Path
    step: int = 0
    facts: dict[str, str | float] = field(default_factory=dict)


@dataclass
class StepRecord:
    """One finished step, the same on every rank. `values` is what gets logged; callbacks may add to it.

    seconds: wall time of the step, from reading the batch to the update. tokens: samples x sequence length of the global batch.
    """

    step: int
    metrics: Metrics
    lr: float
    tokens: int
    seconds: float
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What the model wrote to a prompt. references: texts that would have been right, if any are known."""

    prompt: str
    text: str
    references: list[str]


@dataclass
class Validation:
    """One validation, the same on every rank.

    values: `loss`, `perplexity` of tasks that predict tokens, and what callbacks add, by name. answers: what a callback had
    the model write. tally: what the task counted over all samples (see `Task.tally`), None where it counts nothing.
    """

    values: dict[str, float]
    answers: list[Answer] = field(default_factory=list)
    tally: NDArray[np.float64] | None = None


class Callback:
    """Does something around steps. Every method is called on every rank, in the order of the list of callbacks."""

    def on_start(self, run: Run) -> None:
        """Before the first step of this process."""

    def on_step(self, run: Run, record: StepRecord) -> None:
        """After each step."""

    def on_validation(self, run: Run, validation: Validation) -> None:
        """After each validation."""

    def on_event(self, run: Run, message: str) -> None:
        """Something a user wants to read: a save, a skipped step, a rollback."""

    def on_end(self, run: Run) -> None:
        """After the last step of this process, also when it ends by an error, be it in an `on_start`."""
