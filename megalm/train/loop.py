"""The training loop: steps, validation, checkpoints, and what happens when the loss is not finite."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from megalm import progress
from megalm.checkpoint import CheckpointWriter, load_training_state, newest_intact
from megalm.checkpoint.apart import Apart
from megalm.checkpoint.read import shared_list
from megalm.dataset.cursor import Cursor
from megalm.engine.base import Engine, Metrics
from megalm.engine.schedule import learning_rate
from megalm.errors import UserError
from megalm.train.callbacks.base import Callback, Run, StepRecord, Validation
from megalm.train.reports import Reports
from megalm.train.selection import Selection
from megalm.train.steps import Steps
from megalm.train.stop import StopRequest
from megalm.watch import waits
from megalm.watch.stragglers import Stragglers

logger = logging.getLogger(__name__)


class TrainingDiverged(RuntimeError):
    """The loss stayed NaN or infinite after every rollback that the configuration allows."""


Validate: TypeAlias = Callable[[], tuple[dict[str, float], NDArray[np.float64] | None]]
"""Measures held-out samples: figures by name, and what the task counts (see `Validation.tally`). Collective."""


class Loop:
    """Makes `steps`, and keeps their engines in checkpoints, as `run.config.train` says."""

    def __init__(
        self,
        run: Run,
        engine: Engine,
        steps: Steps,
        validate: Validate | None,
        callbacks: Sequence[Callback],
        companions: Mapping[str, Engine | Apart] | None = None,
    ) -> None:
        """companions: engines that are saved and loaded beside `engine`, by name."""
        self.run = run
        self.config = run.config
        self.engine = engine
        self.steps = steps
        self.validate = validate
        self.companions = companions or {}
        self.writer = CheckpointWriter(
            run.directory, run.config, engine, self._report_save, self.companions, self._report_failed_save
        )
        self.reports = Reports(run, callbacks)
        self.stragglers = Stragglers(run.config.watch, engine.layout)
        self.failed_saves, self.last_failure = 0, ""
        """In a row, up to now; and what was wrong with the last one."""
        self.selection = Selection(run.config)
        self.last_validation: dict[str, Any] | None = None
        """Step and figures of the newest one."""
        self.notices: list[str] = []
        """Told as events at the start."""
        self.skipped_steps = 0
        self.rollbacks = 0
        self.bad_steps: list[tuple[int, int]] = []
        """Sample ranges of the skipped steps in a row up to now."""

    def resume(self, checkpoint: Path) -> None:
        """Go on from an intact checkpoint: weights, optimizer, counters, data position. Newer ones are deleted."""
        state = load_training_state(self.engine, checkpoint, verified=True)
        for name, engine in self.companions.items():
            if isinstance(engine, Apart):
                engine.load(checkpoint / name)
            else:
                load_training_state(engine, checkpoint / name, verified=True)
        self.selection.load(state, shared_list(self.run.directory, self.engine.layout))
        best = self.selection.best
        self.writer.go_back_to(state["step"], best.step if best else None)
        self.run.step = state["step"]
        self.skipped_steps, self.rollbacks = state["skipped_steps"], state["rollbacks"]
        self.last_validation = state.get("validation")
        self.steps.move_to(Cursor.from_json(state["cursor"]))
        self.steps.load(state)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds besides tensors."""
        return {
            "step": self.run.step,
            "cursor": self.steps.cursor.to_json(),
            "counters": self.engine.counters,
            "skipped_steps": self.skipped_steps,
            "rollbacks": self.rollbacks,
            "validation": self.last_validation,
            **self.selection.state(),
            **self.steps.state(),
        }

    def train(self) -> dict[str, Any]:
        """Run to `train.steps` (or `exit_after_steps` of this process, or a request to stop); return the last figures."""
        progress.begin(self.run.step)
        with StopRequest(self.engine.layout.device) as request:
            try:
                self.reports.start()
                for notice in self.notices:
                    self._tell(notice)
                result = self._run_steps(request)
            except BaseException:
                self.reports.end()
                raise
            if errors := self.reports.end():
                raise errors[0]
        counts = {"skipped_steps": self.skipped_steps, "rollbacks": self.rollbacks}
        return result | {"step": self.run.step} | counts

    def _run_steps(self, request: StopRequest) -> dict[str, Any]:
        config, run = self.config.train, self.run
        last = config.steps
        if config.exit_after_steps is not None:
            last = min(last, run.step + config.exit_after_steps)
        result: dict[str, Any] = {}
        stopped = False
        if config.eval_at_start and run.step == 0:
            result |= {f"valid_{name}": value for name, value in self._validate().items()}
        while run.step < last and not (stopped or self._stop_reason()):
            metrics = self._step()
            result |= {"loss": metrics.loss, "grad_norm": metrics.grad_norm}
            self.writer.poll()
            if metrics.skipped and self._recover():
                continue
            # not after the last step, and before a validation: whoever asks to stop kills after some seconds
            stopped = run.step < last and request.agreed()
            if not stopped:
                result |= self._after_step()
        self._save_at_the_end()
        if stopped:
            self._tell(f"stopped on request after step {run.step}, saved: the same command goes on")
        elif reason := self._stop_reason():
            self._tell(f"stopped early after step {run.step}: {reason}")
        best = self.selection.best
        return result | ({"best_step": best.step, f"best_{best.metric}": best.value} if best else {})

    def _save_at_the_end(self) -> None:
        self.writer.save(self.run.step, self.state())
        self.writer.finish()
        if self.writer.newest_step != self.run.step:
            newest = self.writer.newest_step
            left = (
                f"its newest checkpoint is of step {newest}" if newest is not None else "it has no checkpoint"
            )
            raise UserError(
                f"{self.run.directory}: step {self.run.step}, the last one of this process, could not be saved "
                f"({self.last_failure}); {left}: make room, then give the same command again"
            )

    def _stop_reason(self) -> str | None:
        return self.selection.says_stop() or self.steps.stop_reason

    def _after_step(self) -> dict[str, float]:
        """Validate and save where it is time to, or worth it; return the validation's figures if there is one."""
        config, step, interval = self.config.train, self.run.step, self.config.checkpoint.interval
        result: dict[str, float] = {}
        save = interval > 0 and step % interval == 0
        if config.eval_interval and (step % config.eval_interval == 0 or step == config.steps):
            values = self._validate()
            result |= {f"valid_{name}": value for name, value in values.items()}
            if self.selection.see(step, values, self.engine.layout):
                save = True
                self._tell_of_best()
        if save:
            self.writer.save(step, self.state())
        return result

    def _tell_of_best(self) -> None:
        best = self.selection.best
        assert best is not None
        self._tell(f"best validation so far: {best.metric} {best.value:.6g} at step {best.step}")

    def _step(self) -> Metrics:
        config, run = self.config, self.run
        progress.beat("training")
        begin = time.perf_counter()
        first = self.steps.next_sample
        lr, waited = learning_rate(config.optimizer, run.step + 1, config.train.steps), waits.seconds_waited()
        metrics = self.steps.step(run.step + 1, lr)
        run.step += 1
        progress.finish_step(run.step)
        seconds = time.perf_counter() - begin
        record = StepRecord(step=run.step, metrics=metrics, lr=lr, tokens=self.steps.tokens, seconds=seconds)
        figures, told = self.stragglers.see(run.step, seconds, waits.seconds_waited() - waited)
        record.values |= figures
        self.reports.step(record)
        for message in [*self.steps.told, *told]:
            self._tell(message)
        self.skipped_steps += metrics.skipped
        if metrics.overflow:
            self._tell(
                f"step {run.step} skipped: gradients overflow at loss scale {metrics.more['loss_scale']:g}"
            )
        elif metrics.skipped:
            self.bad_steps.append((first, self.steps.cursor.next_sample))
            self._tell(f"step {run.step} skipped: loss or gradient is not finite")
        else:
            self.bad_steps.clear()
        return metrics

    def _recover(self) -> bool:
        """After too many skipped steps in a row go back, and past the data that did it; return whether the step changed."""
        limits, bad = self.config.train, self.bad_steps
        if len(bad) < limits.max_nonfinite_steps:
            return False
        self.bad_steps = []
        self.writer.finish()
        if self.rollbacks >= limits.max_rollbacks:
            raise TrainingDiverged(
                f"loss or gradient is not finite after {self.rollbacks} rollbacks (train.max_rollbacks); "
                "lower optimizer.lr or look at the data"
            )
        self.rollbacks += 1
        checkpoint = newest_intact(
            self.run.directory, self.engine.layout, self.run.step - len(bad), self._tell
        )
        if checkpoint is None:
            # skipped steps leave the weights alone, so going on past the bad data is all there is to do
            self._tell("no checkpoint to go back to: going on past the bad data")
            return False
        self._roll_back(checkpoint, bad)
        return True

    def _roll_back(self, checkpoint: Path, bad: list[tuple[int, int]]) -> None:
        skipped_steps, rollbacks, skipped_samples = (
            self.skipped_steps,
            self.rollbacks,
            self.steps.cursor.skipped,
        )
        self.resume(checkpoint)
        self.skipped_steps, self.rollbacks = skipped_steps, rollbacks
        cursor = Cursor(self.steps.cursor.next_sample, list(skipped_samples))
        for start, end in bad:
            cursor.skip(end - start, start)
        self.steps.move_to(cursor)
        self._tell(f"rolled back to step {self.run.step}, past samples {bad[0][0]} to {bad[-1][1] - 1}")

    def _validate(self) -> dict[str, float]:
        assert self.validate is not None
        progress.beat("validation")
        values, tally = self.validate()
        validation = Validation(values, tally=tally)
        self.reports.validation(validation)
        self.last_validation = {"step": self.run.step, "values": validation.values}
        return validation.values

    def _report_save(self, step: int) -> None:
        after = f", the first after {self.failed_saves} that failed" if self.failed_saves else ""
        self.failed_saves = 0
        self._tell(f"checkpoint of step {step} saved{after}")

    def _report_failed_save(self, step: int, why: str) -> None:
        self.failed_saves += 1
        self.last_failure = why
        if self.engine.layout.rank == 0:
            logger.warning("checkpoint of step %d not saved: %s", step, why)
        self._tell(
            f"alarm: checkpoint of step {step} not saved: {why}; training goes on, the next save tries again"
        )

    def _tell(self, message: str) -> None:
        self.reports.event(message)
