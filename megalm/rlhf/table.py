"""Writes some of each step's answers with their rewards to RUN_DIR/rollouts.jsonl."""

import json

from megalm.rlhf.steps import RlSteps
from megalm.run_files import ROLLOUTS as FILE_NAME
from megalm.train.callbacks.base import Callback, Run, StepRecord
from megalm.train.callbacks.metrics import keep_lines


class RolloutTable(Callback):
    """On rank 0 the first `rlhf.samples_shown` answers of every step that is logged, each step once, also after a resume."""

    def __init__(self, steps: RlSteps) -> None:
        self._steps = steps
        self._last_step = 0

    def on_start(self, run: Run) -> None:
        self._forget(run, run.step)

    def on_step(self, run: Run, record: StepRecord) -> None:
        if record.step <= self._last_step:
            self._forget(run, record.step - 1)
        self._last_step = record.step
        if run.layout.rank or record.step % run.config.logging.interval:
            return
        with open(run.directory / FILE_NAME, "a", encoding="utf-8") as file:
            for prompt, one, reward, parts in self._steps.judged[: run.config.rlhf.samples_shown]:
                line = {"step": record.step, "prompt": prompt.text, "answer": one.text, "reward": reward}
                line |= {"rewards": parts, "tokens": len(one.tokens), "finish_reason": one.finish_reason}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _forget(self, run: Run, step: int) -> None:
        self._last_step = step
        if run.layout.rank == 0:
            keep_lines(run.directory / FILE_NAME, lambda line: line["step"] <= step)
