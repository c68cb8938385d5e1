"""Follows a figure of the validations: which one is the best so far, and whether it is time to stop."""

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from megalm.config.schema import Config
from megalm.config.selection import Mode, mode_of
from megalm.config.suggest import nearest
from megalm.errors import UserError
from megalm.parallel.layout import Layout


class Watch:
    """The best value of one figure so far, its step, and how many validations came since without a better one.

    field: of the configuration, for messages. A value must be better by `min_delta`; NaN never is.
    """

    def __init__(self, field: str, metric: str, mode: Mode | None, min_delta: float = 0.0) -> None:
        self.field = field
        self.metric = metric
        self.mode = mode_of(field, metric, mode)
        self.min_delta = min_delta
        self.forget()

    def forget(self) -> None:
        """Begin anew: the next validation is the best one."""
        self.value: float | None = None
        self.step: int | None = None
        self.since = 0

    def see(self, step: int, values: Mapping[str, float]) -> bool:
        """Look at the validation after `step`; return whether it is the best so far. UserError if it lacks the figure."""
        if self.metric not in values:
            raise UserError(
                f"{self.field}.metric {self.metric!r}: a validation has no such figure{nearest(self.metric, values)} "
                f"(known: {', '.join(values)})"
            )
        value = values[self.metric]
        if not self._is_better(value):
            self.since += 1
            return False
        self.value, self.step, self.since = value, step, 0
        return True

    def _is_better(self, value: float) -> bool:
        if self.value is None:
            return value == value
        gain = self.value - value if self.mode == "min" else value - self.value
        return gain > self.min_delta

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            "metric": self.metric,
            "mode": self.mode,
            "value": self.value,
            "step": self.step,
            "since": self.since,
        }

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Go on from a checkpoint's state; begin anew where that is of another figure, or there is none."""
        self.forget()
        if state and (state["metric"], state["mode"]) == (self.metric, self.mode):
            self.value, self.step, self.since = state["value"], state["step"], state["since"]


class Selection:
    """What the validations of a run decide: `best`, which checkpoint to keep; `stopping`, when to end; None if it is off."""

    def __init__(self, config: Config) -> None:
        stopping, keeping = config.train.early_stopping, config.checkpoint.keep_best
        self.patience = stopping.patience
        self.best: Watch | None = None
        self.stopping: Watch | None = None
        if keeping.metric is not None:
            self.best = Watch("checkpoint.keep_best", keeping.metric, keeping.mode)
        if stopping.patience:
            self.stopping = Watch("train.early_stopping", stopping.metric, stopping.mode, stopping.min_delta)

    def see(self, step: int, values: Mapping[str, float], layout: Layout) -> bool:
        """Look at the validation after `step`, as rank 0 has it; return whether to save a best checkpoint. Collective."""
        if not (self.best or self.stopping):
            return False
        shared = [dict(values)]
        dist.broadcast_object_list(shared, device=layout.device)
        if self.stopping:
            self.stopping.see(step, shared[0])
        return self.best is not None and self.best.see(step, shared[0])

    def says_stop(self) -> str | None:
        """Why to stop now, None to go on."""
        watch = self.stopping
        if watch is None or watch.since < self.patience:
            return None
        value = "no value" if watch.value is None else f"{watch.value:.6g} of step {watch.step}"
        return (
            f"valid_{watch.metric} has not been better than {value} in {watch.since} validations "
            "(train.early_stopping)"
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of both."""
        return {
            "best": self.best.state() if self.best else None,
            "stopping": self.stopping.state() if self.stopping else None,
        }

    def load(self, state: Mapping[str, Any], steps_here: Mapping[int, Any]) -> None:
        """Go on from a checkpoint's state. steps_here: of the checkpoints there are; a best one that is gone is forgotten."""
        if self.stopping:
            self.stopping.load(state.get("stopping"))
        if self.best:
            self.best.load(state.get("best"))
            if self.best.step not in steps_here:
                self.best.forget()
