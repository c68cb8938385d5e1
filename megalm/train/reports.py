"""Passes on to the callbacks what happens in a run; storage that fails under one of them does not end the run."""

import logging
from collections.abc import Callable, Sequence

from megalm.atomic import storage_failure
from megalm.train.callbacks.base import Callback, Run, StepRecord, Validation

logger = logging.getLogger(__name__)


class Reports:
    """The callbacks of a run. That one of them cannot write is told once, by the others too."""

    def __init__(self, run: Run, callbacks: Sequence[Callback]) -> None:
        self.run, self.callbacks = run, callbacks
        self.failing: set[Callback] = set()

    def start(self) -> None:
        """Before the first step."""
        self._each(lambda callback: callback.on_start(self.run))

    def step(self, record: StepRecord) -> None:
        """After each step."""
        self._each(lambda callback: callback.on_step(self.run, record))

    def validation(self, validation: Validation) -> None:
        """After each validation."""
        self._each(lambda callback: callback.on_validation(self.run, validation))

    def event(self, message: str) -> None:
        """Something a user wants to read."""
        self._each(lambda callback: callback.on_event(self.run, message))

    def end(self) -> list[Exception]:
        """Let every callback end, whatever becomes of the others; return their errors."""
        errors: list[Exception] = []
        for callback in self.callbacks:
            try:
                callback.on_end(self.run)
            except Exception as error:
                name = type(callback).__name__
                logger.warning("%s failed at the end of the run: %r", name, error)
                if storage_failure(error) is None:
                    errors.append(error)
        return errors

    def _each(self, call: Callable[[Callback], None]) -> None:
        for callback in self.callbacks:
            try:
                call(callback)
            except Exception as error:
                reason = storage_failure(error)
                if reason is None:
                    raise
                self._alarm(callback, reason)

    def _alarm(self, callback: Callback, reason: str) -> None:
        if callback in self.failing:
            return
        self.failing.add(callback)
        message = f"alarm: {type(callback).__name__} cannot write: {reason}; training goes on without"
        logger.warning(message)
        self.event(message)
