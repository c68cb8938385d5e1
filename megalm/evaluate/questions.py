"""Makes questions of a task's records: what the model is asked, with solved questions before it, and what is right."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from megalm.errors import UserError
from megalm.evaluate.documents import places, tokenizer_of
from megalm.evaluate.forms import Record
from megalm.evaluate.kinds import UNSOLVED
from megalm.evaluate.making import Maker
from megalm.evaluate.parts import Source, chosen, sources_of
from megalm.evaluate.question import Question
from megalm.evaluate.records import Files
from megalm.evaluate.task import Task


def questions_of(
    task: Task, folder: Path, files: Files, few_shot: int | None, limit: int | None, seed: int
) -> list[Question]:
    """The questions of `task`, whose file lies in `folder`.

    few_shot: solved questions before each (None: the task's own). limit: so many at most, drawn from `seed`, in the file's order. Raises
    UserError for files and columns that are missing.
    """
    if task.kind == "memorization":
        return document_questions(task, folder, files, limit, seed)
    shots = task.few_shot.count if few_shot is None or task.kind in UNSOLVED else few_shot
    if shots and task.kind in UNSOLVED:
        raise UserError(
            f"task {task.name}: a task of kind `{task.kind}` has no solved questions; set few_shot to 0"
        )
    make = Maker(task)
    sources = sources_of(task, folder, files)
    asked = {
        number: make(number, sources[number]) for number in chosen(sources, limit, f"{seed} {task.name}")
    }
    if not shots:
        return list(asked.values())
    if task.few_shot.data is None:
        pool = _Pool(task, sources, make, True, seed)
    else:
        solved = [Source(one, unit) for unit, one in enumerate(files.records(task.few_shot.data, folder))]
        pool = _Pool(task, solved, make, False, seed)
    return [pool.before(question, sources[number].record, shots) for number, question in asked.items()]


def document_questions(
    task: Task, folder: Path, files: Files, limit: int | None, seed: int
) -> list[Question]:
    """Questions of kind `memorization`: places in documents of files of tokens, a document each (see `documents.places`)."""
    wanted = task.memorization
    count = wanted.documents if limit is None else min(limit, wanted.documents)
    named = task.data if isinstance(task.data, dict) else {None: task.data}
    found: list[Question] = []
    for part, name in named.items():
        prefix = files.dataset(name, folder)
        tokenizer = tokenizer_of(prefix)
        drawn = places(prefix, wanted, count, f"{seed} {task.name} {part}")
        for unit, (where, ids) in enumerate(drawn):
            shown = ids[: wanted.prefix], ids[wanted.prefix :]
            found.append(
                Question(len(found), where, [], part=part, unit=unit, ids=shown, tokenizer=tokenizer)
            )
    return found


class _Pool:
    """Solved questions to put before others. own: they are the task's questions themselves."""

    def __init__(self, task: Task, sources: Sequence[Source], make: Maker, own: bool, seed: int) -> None:
        self.task, self.sources, self.make, self.own, self.seed = task, sources, make, own, seed
        self.fitting: dict[tuple[str | None, Any], list[int]] = {}
        for number, source in enumerate(sources):
            self.fitting.setdefault((source.part, self._value(source.record)), []).append(number)

    def before(self, question: Question, record: Record, count: int) -> Question:
        """The question with `count` solved ones of its part before it, never itself among them; the same for what belongs together."""
        fits = self.fitting.get((question.part if self.own else None, self._value(record)), [])
        places = [place for place in fits if not (self.own and self.sources[place].unit == question.unit)]
        if len(places) < count:
            raise UserError(
                f"{record.where}: task {self.task.name} has {len(places)} other questions to solve before this one, and few_shot asks "
                f"for {count}; lower it"
            )
        if self.task.few_shot.pick == "first":
            picked = places[:count]
        else:
            picked = random.Random(f"{self.seed} {question.unit}").sample(places, count)
        shots = tuple(
            self.make(place, self.sources[place]).solved(self.make.shot(self.sources[place].record))
            for place in picked
        )
        return replace(question, prompts=[replace(prompt, shots=shots) for prompt in question.prompts])

    def _value(self, record: Record) -> Any:
        column = self.task.few_shot.same
        return None if column is None else self.make.templates.value("few_shot.same", column, record)
