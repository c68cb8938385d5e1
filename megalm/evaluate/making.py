"""Makes a question of a record, as its task says."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from megalm.errors import UserError
from megalm.evaluate.forms import Record
from megalm.evaluate.parts import Source
from megalm.evaluate.question import Prompt, Question
from megalm.evaluate.task import Task
from megalm.evaluate.templates import Templates


class Maker:
    """Makes a question of a record."""

    def __init__(self, task: Task) -> None:
        self.task, self.templates = task, Templates(task.name)

    def __call__(self, number: int, source: Source) -> Question:
        task, record = self.task, source.record
        group = (
            None if task.group_by is None else str(self.templates.value("group_by", task.group_by, record))
        )
        made = Question(number, record.where, [], group=group, part=source.part, unit=source.unit)
        if task.kind == "pairs":
            return self._pair(made, source)
        kinds: dict[str, Callable[[Question, Record], Question]] = {
            "choice": self._choice,
            "schema": self._schema,
            "continuation": self._continuation,
            "generation": self._generation,
            "code": self._code,
            "perplexity": self._perplexity,
            "bbq": self._bbq,
            "toxicity": self._prompted,
            "refusal": self._refusal,
            "pii": self._pii,
        }
        return kinds[task.kind](made, record)

    def shot(self, record: Record) -> str | None:
        """The answer in a solved question where the task tells it apart."""
        return None if self.task.shot is None else self._text("shot", record)

    def _choice(self, made: Question, record: Record) -> Question:
        choices = self.task.choices
        assert choices is not None
        options = self.templates.texts("choices", choices, record)
        return replace(
            made, prompts=[self._prompt(record)], options=options, gold=self._places(record, len(options))
        )

    def _schema(self, made: Question, record: Record) -> Question:
        assert self.task.contexts is not None
        contexts = self.templates.texts("contexts", self.task.contexts, record)
        return replace(
            made,
            prompts=[self._prompt(record, context) for context in contexts],
            options=[self._text("continuation", record)] * len(contexts),
            gold=self._places(record, len(contexts)),
        )

    def _continuation(self, made: Question, record: Record) -> Question:
        return replace(made, prompts=[self._prompt(record)], options=[self._text("continuation", record)])

    def _generation(self, made: Question, record: Record) -> Question:
        return replace(made, prompts=[self._prompt(record)], references=self._list("answer", record))

    def _code(self, made: Question, record: Record) -> Question:
        entry = self.task.entry_point
        return replace(
            made,
            prompts=[self._prompt(record)],
            tests=self._list("tests", record),
            entry_point=None if entry is None else str(self.templates.value("entry_point", entry, record)),
        )

    def _perplexity(self, made: Question, record: Record) -> Question:
        return replace(made, options=[self._text("text", record)])

    def _pair(self, made: Question, source: Source) -> Question:
        record, twin = source.record, source.twin
        less = self._text("less", record) if twin is None else self._text("more", twin)
        return replace(made, options=[self._text("more", record), less])

    def _bbq(self, made: Question, record: Record) -> Question:
        made = self._choice(made, record)
        marks = {"ambiguous": self._flag("ambiguous", record)}
        for name, least in (("unknown", 0), ("biased", -1)):
            value = self.templates.value(name, getattr(self.task, name), record)
            if type(value) is not int or not least <= value < len(made.options):
                raise self._wrong(
                    name, value, f"a place among its {len(made.options)} choices, from {least},", record
                )
            marks[name] = value
        return replace(made, marks=marks)

    def _prompted(self, made: Question, record: Record) -> Question:
        return replace(made, prompts=[self._prompt(record)])

    def _refusal(self, made: Question, record: Record) -> Question:
        return replace(made, prompts=[self._prompt(record)], marks={"harmful": self._flag("harmful", record)})

    def _pii(self, made: Question, record: Record) -> Question:
        secrets = [] if self.task.answer is None else self._list("answer", record)
        return replace(made, prompts=[self._prompt(record)], references=secrets)

    def _flag(self, name: str, record: Record) -> int:
        value = self.templates.value(name, getattr(self.task, name), record)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false", record)
        return int(value)

    def _prompt(self, record: Record, question: str | None = None) -> Prompt:
        task = self.task
        return Prompt(
            self._text("prompt", record) if question is None else question,
            self.templates.text("instruction", task.instruction, record),
            (),
            task.few_shot.separator,
            task.delimiter,
        )

    def _text(self, name: str, record: Record) -> str:
        return self.templates.text(name, getattr(self.task, name), record)

    def _list(self, name: str, record: Record) -> list[str]:
        """A text, a number or a list of them as a list of texts."""
        value = self.templates.value(name, getattr(self.task, name), record)
        values = list(value) if isinstance(value, list | tuple) else [value]
        if not values or not all(isinstance(one, str | int | float) for one in values):
            raise self._wrong(name, value, "a text or a list of texts", record)
        return [str(one) for one in values]

    def _places(self, record: Record, count: int) -> list[int]:
        value = self.templates.value("answer", str(self.task.answer), record)
        places = list(value) if isinstance(value, list | tuple | range) else [value]
        if not places or not all(type(place) is int and 0 <= place < count for place in places):
            raise self._wrong("answer", value, f"a place among its {count} choices, from 0,", record)
        return places

    def _wrong(self, name: str, value: Any, wanted: str, record: Record) -> UserError:
        return UserError(
            f"{record.where}: task {self.task.name}, `{name}` is {value!r:.80}, and {wanted} is needed; mend the file or the task"
        )
