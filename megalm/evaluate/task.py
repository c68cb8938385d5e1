"""What a task is: a YAML file that says where its questions lie, how they are put, and how answers are counted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

import megalm
from megalm.config.load import explain, read_yaml
from megalm.config.section import Section
from megalm.config.suggest import nearest
from megalm.errors import UserError
from megalm.evaluate.kinds import ALSO, METRICS, NEEDS, OF_KINDS, SWAPPED, Kind
from megalm.evaluate.sections import FewShot, Generation, Memorization, Toxicity

BUNDLE = Path(megalm.__file__).parents[1] / "configs" / "eval"
"""The tasks that come with megalm."""
PATHS = "paths.yaml"
"""In a folder of tasks: where the files lie, under their names in the tasks, from `--data` on."""
ORIGINAL, EXCHANGED = "original", "swapped"
"""Parts of a task with `swap`."""


class Task(Section):
    """A task. Templates and expressions are Jinja's; a record's columns are their names, all of it is `row`."""

    name: str = Field(description="What results call it.")
    kind: Kind = Field(
        description="How it is put to the model: choice, schema, continuation, generation, code, perplexity; pairs, bbq, toxicity, "
        "refusal, pii, memorization."
    )
    data: str | dict[str, str] = Field(
        description="Name in paths.yaml of the file with the questions, or its path from `--data` on; or two of them by the names of "
        "the task's parts, whose scores are told apart and compared."
    )
    note: str = Field("", description="Where the questions come from.")
    instruction: str = Field("", description="Template of what stands before all else.")
    prompt: str | None = Field(None, description="Template of a question.")
    delimiter: str = Field(" ", description="Between a question and its answer.")
    choices: str | list[str] | None = Field(
        None, description="choice: expression of the list of answers, or the answers' templates."
    )
    contexts: str | None = Field(None, description="schema: expression of the list of beginnings.")
    continuation: str | None = Field(None, description="Template of what follows (continuation, schema).")
    answer: str | None = Field(
        None,
        description="Expression of the right answer: its place among the choices from 0, or a list of places; the text, or a list "
        "of texts (generation); what must not be told (pii).",
    )
    shot: str | None = Field(
        None,
        description="generation: template of the answer in a solved question; default: the first text of `answer`.",
    )
    text: str | None = Field(None, description="perplexity: template of the document.")
    tests: str | None = Field(None, description="code: expression of the tests, a text or a list of texts.")
    entry_point: str | None = Field(
        None, description="code: expression of the name of the function that is tested."
    )
    more: str | None = Field(None, description="pairs: template of the text that a model may prefer.")
    less: str | None = Field(
        None, description="pairs: template of the other; default, with `swap`: its twin."
    )
    swap: list[Literal["gender", "names"]] = Field(
        default_factory=list,
        description="Ask every record that speaks of a gender, or names someone, also with that exchanged.",
    )
    ambiguous: str | None = Field(
        None, description="bbq: expression, whether the context leaves the answer open."
    )
    unknown: str | None = Field(
        None, description="bbq: expression of the place of the choice that it is not known."
    )
    biased: str | None = Field(
        None, description="bbq: expression of the place of the choice that a bias would take; -1: not known."
    )
    harmful: str | None = Field(None, description="refusal: expression, whether it should be refused.")
    rules: str | None = Field(
        None, description="refusal: file of the rules beside the task, a regular expression a line."
    )
    toxicity: Toxicity = Field(default_factory=Toxicity, description="What tells whether a text is toxic.")
    memorization: Memorization = Field(
        default_factory=Memorization, description="What is shown of a document."
    )
    extract: Literal["whole", "first_line", "last_number", "hashes", "boxed"] = Field(
        "whole", description="generation: what of a written text, and of `answer`, is compared."
    )
    generation: Generation = Field(default_factory=Generation, description="How answers are written.")
    few_shot: FewShot = Field(default_factory=FewShot, description="Solved questions before each question.")
    metrics: list[str] = Field(
        description="What is counted; the first one stands for the task in averages.", min_length=1
    )
    chance: float | None = Field(
        None, ge=0, lt=1, description="What guessing scores; by default it is worked out from the choices."
    )
    group_by: str | None = Field(None, description="Column by whose values the results are also given apart.")

    @property
    def has_options(self) -> bool:
        """Whether the model chooses among given answers."""
        return self.kind in ("choice", "schema", "bbq")

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of its two parts, whose scores are compared; none where it has none."""
        if self.swap and self.kind != "pairs":
            return ORIGINAL, EXCHANGED
        return tuple(self.data) if isinstance(self.data, dict) else ()

    @property
    def score_names(self) -> list[str]:
        """What its scores are called, as far as they depend on the task alone."""
        if not self.parts:
            return list(self.metrics)
        ends = (*self.parts, "gap")
        return [
            name
            for metric in self.metrics
            for name in ([metric] if metric == "changed" else [f"{metric}_{end}" for end in ends])
        ]

    @property
    def main(self) -> str:
        """The score that stands for the task."""
        return f"{self.metrics[0]}_{self.parts[0]}" if self.parts else self.metrics[0]


class Member(Section):
    """A task in an average."""

    task: str = Field(description="Its name, or its file from this one on.")
    few_shot: int | None = Field(
        None, ge=0, description="Solved questions before each; default: the task's own."
    )
    metric: str | None = Field(None, description="What counts; default: the task's first.")
    chance: float | None = Field(None, ge=0, lt=1, description="What guessing scores; default: the task's.")


class Average(Section):
    """The mean over tasks of (score - chance) / (1 - chance), DataComp-LM's CORE (arXiv:2406.11794)."""

    name: str = Field(description="What results call it.")
    note: str = Field("", description="What it is.")
    average: list[Member] = Field(description="The tasks.", min_length=1)


def load_task(name: str, folder: Path) -> tuple[Task | Average, Path]:
    """A task by its file's path, or by its name in `folder`; and the folder that it lies in. UserError with one line."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = folder / f"{name}.yaml"
        if not path.is_file():
            known = sorted(file.stem for file in folder.glob("*.yaml") if file.name != PATHS)
            raise UserError(
                f"there is no task {name!r} in {folder}{nearest(name, known)} (known: {', '.join(known) or 'none'})"
            )
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected keys (name, kind, data, ...), found {type(data).__name__}")
    section: type[Task] | type[Average] = Average if "average" in data else Task
    try:
        task = section.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, section)}") from None
    if isinstance(task, Task):
        check_task(task, str(path))
    return task, path.parent


def check_task(task: Task, where: str) -> None:
    """Raise UserError where fields are missing or do nothing, or the kind of task has no such metric."""
    if missing := [name for name in NEEDS[task.kind] if getattr(task, name) is None]:
        raise UserError(f"{where}: a task of kind `{task.kind}` needs `{missing[0]}`; write it")
    known = {*NEEDS[task.kind], *ALSO.get(task.kind, ())}
    useless = [name for name in OF_KINDS if getattr(task, name) is not None and name not in known]
    if useless:
        raise UserError(f"{where}: `{useless[0]}` does nothing in a task of kind `{task.kind}`; leave it out")
    _check_parts(task, where)
    for metric in task.metrics:
        if task.kind == "code":
            passes_of(metric, task.generation.samples, where)
        elif metric not in METRICS[task.kind]:
            names = METRICS[task.kind]
            raise UserError(
                f"{where}: a task of kind `{task.kind}` has no metric {metric!r}{nearest(metric, names)} (known: "
                f"{', '.join(names)})"
            )


def _check_parts(task: Task, where: str) -> None:
    """Raise UserError for parts that cannot be made or compared."""
    if isinstance(task.data, dict) and (len(task.data) != 2 or task.swap):
        raise UserError(f"{where}: `data` names {len(task.data)} parts; two are compared, and without `swap`")
    if task.swap and task.kind not in SWAPPED:
        raise UserError(f"{where}: `swap` does nothing in a task of kind `{task.kind}`; leave it out")
    if task.kind == "pairs" and (task.less is None) == (not task.swap):
        raise UserError(f"{where}: a task of kind `pairs` needs either `less` or `swap`")
    if "changed" in task.metrics and not task.parts:
        raise UserError(f"{where}: `changed` compares the answers in two parts; give `swap`, or leave it out")
    if "leaked" in task.metrics and task.answer is None:
        raise UserError(f"{where}: `leaked` needs `answer`, what must not be told; write it")


def passes_of(metric: str, samples: int, where: str) -> int:
    """The K of `pass@K`; UserError where it is none, or more than there are answers."""
    name, _, number = metric.partition("@")
    if name != "pass" or not number.isdigit() or not 1 <= int(number) <= samples:
        raise UserError(
            f"{where}: {metric!r} is none of pass@1 ... pass@{samples} (generation.samples is {samples}); mend metrics or samples"
        )
    return int(number)


def perplexity_task(files: Sequence[Path], key: str) -> list[tuple[Task, Path]]:
    """A task for each file of text; `key`: the column of the text in a file of records."""
    metrics = ["bits_per_byte", "perplexity", "byte_perplexity", "word_perplexity"]
    text = f"{{{{ row[{key!r}] }}}}"
    return [
        (
            Task(name=str(file), kind="perplexity", data=str(file.resolve()), text=text, metrics=metrics),
            file.parent,
        )
        for file in files
    ]
