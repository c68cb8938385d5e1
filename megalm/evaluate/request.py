"""What the user asks of `megalm eval`, checked before anything is loaded; imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from megalm.errors import UserError
from megalm.evaluate.judges import Judge, judge_of
from megalm.evaluate.kinds import UNSOLVED
from megalm.evaluate.question import Question
from megalm.evaluate.questions import questions_of
from megalm.evaluate.records import Files
from megalm.evaluate.task import BUNDLE, Average, Member, Task, check_task, load_task, perplexity_task
from megalm.generate.request import ModelRequest, require


@dataclass(kw_only=True)
class EvalRequest(ModelRequest):
    """A checkpoint and what it is asked.

    `tasks`: names in `task_folder` or files. `texts`: files whose perplexity is measured, their documents under `text_key`. `data`: where
    the tasks' files lie. `few_shot`: solved questions before each, None: as the tasks have it. `limit`: questions of a task at most.
    `window`, `stride`: of documents, in tokens; None: the model's context, and as much. `chat_template`: prompts are conversations, written by
    the template of this name or file (`""`: that of the training data). `begin_token`: what plain texts begin with. `batch_size`: texts of one forward pass. `max_rows`: texts that a
    copy of the model writes side by side. `classifier`: tells toxic texts, in place of the tasks' own.
    Where `checkpoint` is the address of a server, `model` chooses among its models, and `tokenizer` is theirs.
    """

    tasks: Sequence[str] = ()
    texts: Sequence[Path] = ()
    text_key: str = "text"
    task_folder: Path = BUNDLE
    data: Path | None = None
    output: Path
    few_shot: int | None = None
    limit: int | None = None
    seed: int = 1234
    window: int | None = None
    stride: int | None = None
    chat_template: str | None = None
    system: str | None = None
    begin_token: str | None = None
    batch_size: int = 32
    max_rows: int = 64
    classifier: Path | None = None
    model: str | None = None
    tokenizer: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_served and self.tokenizer is None:
            raise UserError(
                "--tokenizer is missing: a server is asked in token ids; name the model's tokenizer, or a checkpoint of it"
            )
        if not self.is_served and (self.model or self.tokenizer):
            raise UserError(
                "--model and --tokenizer are for the address of a server (http://host:port/v1): leave them out"
            )
        if self.is_served and max(self.tensor_model_parallel_size, self.pipeline_model_parallel_size) > 1:
            raise UserError(
                "a server has its own layout: leave --tensor-model-parallel-size and the like out"
            )
        if not self.tasks and not self.texts:
            raise UserError("nothing to measure; name tasks with --tasks NAME,NAME or text with --text FILE")
        for name in ("limit", "window", "stride"):
            value = getattr(self, name)
            require(self, name, value is None or value >= 1, "at least 1")
        for name in ("batch_size", "max_rows"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "few_shot", self.few_shot is None or self.few_shot >= 0, "0 or more")
        if self.system is not None and self.chat_template is None:
            raise UserError("--system begins a conversation: add --chat or --chat-template")
        if self.begin_token is not None and self.chat_template is not None:
            raise UserError(
                "--begin-token is of plain text, and a chat template writes its own: leave it out"
            )

    @property
    def is_served(self) -> bool:
        """Whether the model is asked through a server."""
        return is_address(self.checkpoint)

    def check_world_size(self, world_size: int) -> None:
        """Refuse processes that a server has no use for, too."""
        if self.is_served and world_size > 1:
            raise UserError(f"--nproc {world_size}: a server is asked by one process; leave it out")
        super().check_world_size(world_size)


def is_address(checkpoint: str) -> bool:
    """Whether that is no path but a server."""
    return checkpoint.startswith(("http://", "https://"))


class Prepared(NamedTuple):
    """A task with its questions; label: what results call it. judge: of what is written, where the kind of task has one."""

    label: str
    task: Task
    shots: int
    questions: list[Question]
    judge: Judge | None = None


class Plan(NamedTuple):
    """What is to be asked, and what is averaged: of each average its members with their tasks' labels."""

    tasks: list[Prepared]
    averages: list[tuple[Average, list[tuple[Member, str]]]]


def prepare(request: EvalRequest) -> Plan:
    """Read tasks and questions. UserError with one line for whatever is missing or malformed."""
    files = Files(request.data)
    prepared: dict[str, Prepared] = {}
    averages: list[tuple[Average, list[tuple[Member, str]]]] = []

    def add(task: Task, folder: Path, few_shot: int | None) -> str:
        shots = _shots(task, few_shot)
        label = task.name if shots == _shots(task, request.few_shot) else f"{task.name}:{shots}"
        if label not in prepared:
            questions = questions_of(task, folder, files, shots, request.limit, request.seed)
            judge = judge_of(task, folder, request.classifier)
            prepared[label] = Prepared(label, task, shots, questions, judge)
        metrics = dict.fromkeys([*prepared[label].task.metrics, *task.metrics])
        merged = task.model_copy(update={"metrics": list(metrics)})
        prepared[label] = prepared[label]._replace(task=merged)
        return label

    for name in request.tasks:
        task, folder = load_task(name, request.task_folder)
        if isinstance(task, Task):
            add(task, folder, request.few_shot)
            continue
        labels = []
        for member in task.average:
            one, place = _member(member, folder, task)
            few_shot = member.few_shot if request.few_shot is None else request.few_shot
            labels.append((member, add(one, place, few_shot)))
        averages.append((task, labels))
    for task, folder in perplexity_task(request.texts, request.text_key):
        add(task, folder, None)
    return Plan(list(prepared.values()), averages)


def _shots(task: Task, few_shot: int | None) -> int:
    """Solved questions before each; of tasks that have none 0 whatever is asked for."""
    if task.kind in UNSOLVED:
        return task.few_shot.count
    return task.few_shot.count if few_shot is None else few_shot


def _member(member: Member, folder: Path, average: Average) -> tuple[Task, Path]:
    name = str(folder / member.task) if Path(member.task).suffix else member.task
    task, place = load_task(name, folder)
    if isinstance(task, Average):
        raise UserError(f"{average.name}: {member.task} is an average itself; name its tasks instead")
    if member.metric is not None and task.parts:
        raise UserError(
            f"{average.name}: {member.task} has two parts, and counts by its own metric; leave `metric` out"
        )
    if member.metric is not None and member.metric not in task.metrics:
        task = task.model_copy(update={"metrics": [*task.metrics, member.metric]})
        check_task(task, f"{average.name}, {member.task}")
    return task, place
