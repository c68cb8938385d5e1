"""Asks the model tasks of `megalm eval` at validations: scores are figures of the validation, and in full lines of RUN_DIR/tasks.jsonl."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megalm import progress
from megalm.config.schema import Config
from megalm.engine.base import Engine
from megalm.errors import UserError
from megalm.evaluate.answers import Answers
from megalm.evaluate.ask import Window, ask
from megalm.evaluate.documents import check_tokenizer
from megalm.evaluate.encode import Encoder
from megalm.evaluate.loaded import LoadedModel
from megalm.evaluate.model import AskedModel
from megalm.evaluate.request import EvalRequest, Plan, prepare
from megalm.evaluate.results import average_of, entry_of, scores_of
from megalm.evaluate.scoring import check_one_class
from megalm.evaluate.task import BUNDLE
from megalm.generate.chat import trained_template
from megalm.generate.decode import context_length
from megalm.generate.mode import at_rest
from megalm.run_files import TASKS as FILE_NAME
from megalm.tokenizer import Tokenizer
from megalm.train.callbacks.base import Callback, Run, Validation
from megalm.train.callbacks.step_file import StepFile

Found = dict[str, Any]
MAX_ROWS = 64  # texts that a copy of the model writes side by side


def open_tasks(config: Config) -> Plan:
    """Read the tasks of `evaluate` with their questions; UserError for what is missing, malformed, or followed and not always asked."""
    asked = config.evaluate
    plan = prepare(
        EvalRequest(
            checkpoint=config.run.dir,
            tasks=asked.tasks,
            task_folder=Path(asked.task_folder) if asked.task_folder else BUNDLE,
            data=Path(asked.data) if asked.data else None,
            output=Path(config.run.dir),
            few_shot=asked.few_shot,
            limit=asked.limit,
            seed=asked.seed,
        )
    )
    for prepared in plan.tasks:
        check_one_class(prepared.task, prepared.questions)
    stopping = config.train.early_stopping
    followed = {"checkpoint.keep_best": config.checkpoint.keep_best.metric}
    followed |= {"train.early_stopping": stopping.metric} if stopping.patience else {}
    for field, metric in followed.items():
        if asked.every > 1 and metric in set(_names(plan)):
            raise UserError(
                f"{field}.metric {metric} is measured at every validation number {asked.every} alone (evaluate.every): set that to 1"
            )
    return plan


def _names(plan: Plan) -> Iterator[str]:
    """Of all figures."""
    for prepared in plan.tasks:
        yield from (f"{prepared.label}_{metric}" for metric in prepared.task.score_names)
    yield from (average.name for average, _ in plan.averages)


class TaskScores(StepFile):
    """Asks on all ranks, under the layout of the training: the scores of `megalm eval` on a checkpoint of the step.

    Comes before the callbacks that write down a validation. Neither weights nor batches nor dropout notice.
    """

    def __init__(self, engine: Engine, config: Config, tokenizer: Tokenizer, plan: Plan) -> None:
        super().__init__(FILE_NAME)
        self._engine, self._config, self._plan = engine, config, plan
        asked = config.evaluate
        for prepared in plan.tasks:
            check_tokenizer(prepared.questions, tokenizer)
        template = trained_template(config, tokenizer, asked.chat_template) if asked.chat else None
        self._encoder = Encoder(tokenizer, template)

    def on_validation(self, run: Run, validation: Validation) -> None:
        train, every = run.config.train, run.config.evaluate.every
        if run.step != train.steps and run.step // train.eval_interval % every:
            return
        self._engine.gather_weights()
        with at_rest(self._engine.chunks):
            shared = [self._ask()]
        dist.broadcast_object_list(shared, device=run.layout.device)
        (found,) = shared
        for label, entry in found["tasks"].items():
            scores = entry["metrics"].items()
            validation.values |= {f"{label}_{name}": score["value"] for name, score in scores}
        validation.values |= {name: entry["value"] for name, entry in found["averages"].items()}
        self.append(run, [found])

    def _ask(self) -> Found:
        """What rank 0 finds; other ranks help to."""
        asked = self._config.evaluate
        # its weights change from validation to validation: nothing is kept
        source = LoadedModel(self._engine, self._config, self._encoder.tokenizer, asked.batch_size, MAX_ROWS)
        model = AskedModel(source, self._encoder, Answers(None, ""))
        length = context_length(self._config)
        entries: Found = {}
        for prepared in self._plan.tasks:
            progress.beat(f"task {prepared.label}")
            answered = ask(
                model,
                prepared.task,
                prepared.questions,
                Window(length, length),
                lambda _: progress.beat(),
                prepared.judge,
            )
            if self._engine.layout.rank == 0:
                scores = scores_of(prepared, answered, asked.seed)
                entries[prepared.label] = entry_of(prepared, answered, scores, asked.seed)
        averages = {
            average.name: average_of(average, members, entries)
            for average, members in self._plan.averages
            if entries
        }
        return {"tasks": entries, "averages": averages}


def task_scores(
    engine: Engine, config: Config, tokenizer: Tokenizer | None, plan: Plan | None
) -> list[Callback]:
    """The callback that asks the tasks of `plan`, if there are any."""
    if plan is None or tokenizer is None:
        return []
    return [TaskScores(engine, config, tokenizer, plan)]
