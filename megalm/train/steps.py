"""What a step of a run is: batch, preparation, update. The loop knows no more of it than this."""

from typing import Any, Protocol

from megalm.dataset.cursor import Cursor
from megalm.engine.base import Engine, Loss, Metrics
from megalm.engine.parameter_groups import rates_by_name
from megalm.train.data import TrainingData
from megalm.train.tasks import Preparation


class Steps(Protocol):
    """Makes one step after another, from a position that can be saved, moved and rewound. All methods are collective."""

    tokens: int
    """Of the step made last."""
    told: list[str]
    """What there is to tell of the step made last."""
    stop_reason: str | None
    """Why the run is to end before its last step, if it is."""

    @property
    def cursor(self) -> Cursor:
        """Stands at the next step's first sample."""

    @property
    def next_sample(self) -> int:
        """Number of the next step's first sample."""

    def move_to(self, cursor: Cursor) -> None:
        """Go on from another position."""

    def step(self, number: int, lr: float) -> Metrics:
        """Make the step of this number, from 1 on."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it (JSON) besides engines and position."""

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave; `state` may hold more."""


class BatchSteps:
    """A batch of given samples a step, and one update (see `Steps`)."""

    def __init__(
        self, engine: Engine, loss: Loss, data: TrainingData, prepare: Preparation | None = None
    ) -> None:
        self.engine, self.loss, self.data, self.prepare = engine, loss, data, prepare
        config = engine.config
        self.tokens = config.batch.global_batch_size * config.batch.seq_length
        self.told: list[str] = []
        self.stop_reason: str | None = None

    @property
    def cursor(self) -> Cursor:
        """Of the data."""
        return self.data.cursor

    @property
    def next_sample(self) -> int:
        """Of the data."""
        return self.data.next_sample

    def move_to(self, cursor: Cursor) -> None:
        """Move the data; what was read ahead is dropped."""
        self.data.move_to(cursor)

    def step(self, number: int, lr: float) -> Metrics:
        """Read, prepare, update."""
        microbatches = self.data.next()
        if self.prepare:
            self.prepare(microbatches, training=True)
        metrics = self.engine.step(microbatches, self.loss, lr)
        metrics.more |= rates_by_name(self.engine.config, lr)
        return metrics

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Nothing."""
