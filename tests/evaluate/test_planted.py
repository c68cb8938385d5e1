"""A model that has the right answers by heart scores all there is on every task, one that has the wrong ones nothing."""

from pathlib import Path
from typing import Any

import pytest

from megalm.evaluate.encode import Encoder, Pair
from megalm.evaluate.question import Prompt, Question
from megalm.evaluate.questions import questions_of
from megalm.evaluate.records import Files
from megalm.evaluate.task import Task, load_task
from megalm.sandbox.confine import can_refuse_system_calls
from megalm.testing import run_distributed
from megalm.tokenizer import load_tokenizer, train_bpe
from tests.evaluate.by_heart import ENOUGH, learn
from tests.evaluate.small import evaluate, write_tasks

TAUGHT = ["choices", "schemas", "last_words", "asked", "sums", "code"]
NONSENSE = "QQ JJ QJ JQJ"


def lessons(task: Task, question: Question, rows: list[Any], right: bool) -> list[tuple[Prompt, str]]:
    """Prompts, and what the model is to say to them."""
    if task.kind == "choice":
        place = question.gold[0] if right else (question.gold[0] + 1) % len(question.options)
        return [(question.prompts[0], question.options[place])]
    if task.kind == "schema":
        meant = question.gold[0] if right else 1 - question.gold[0]
        told = [question.options[0] if place == meant else NONSENSE for place in range(2)]
        return list(zip(question.prompts, told, strict=True))
    if task.kind == "continuation":
        return [(question.prompts[0], question.options[0] if right else NONSENSE)]
    if task.kind == "code":
        return [(question.prompts[0], f" return {question.number if right else question.number + 1}\n")]
    answer = rows[question.number].row.get("result", question.references[0])
    return [(question.prompts[0], answer if right else NONSENSE)]


def teach(directory: Path, tasks: Path, right: bool) -> float:
    """Train until the answers are known by heart, and save; to be called in a world."""
    tokenizer = load_tokenizer(directory / "tokenizer")
    files, encoder = Files(tasks), Encoder(tokenizer)
    pairs: list[Pair] = []
    for name in TAUGHT:
        task, folder = load_task(name, tasks)
        assert isinstance(task, Task)
        rows = files.records(task.data, folder)
        for question in questions_of(task, folder, files, None, None, 0):
            found = encoder.pairs(lessons(task, question, rows, right))
            ends = task.kind in ("generation", "code")
            pairs += [
                Pair(one.context, (*one.continuation, tokenizer.eod_id) if ends else one.continuation)
                for one in found
            ]
    return learn(directory, tokenizer, pairs)


def ask(directory: Path, tasks: Path, names: list[str]) -> dict[str, Any]:
    """Results of the tasks; to be called in a world."""
    return evaluate(str(directory), str(directory / "out"), data=tasks, tasks=names, dtype="fp32")


@pytest.mark.slow
@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_a_model_that_knows_the_answers_scores_all_and_one_that_knows_the_wrong_ones_nothing(
    tmp_path: Path, right: bool
) -> None:
    tasks = write_tasks(tmp_path / "tasks")
    text = tmp_path / "text.txt"
    text.write_text("the end of the text, and of the hand. question how many hands\n" * 10, encoding="utf-8")
    train_bpe([text], 300, tmp_path / "tokenizer")
    assert run_distributed(teach, 1, tmp_path, tasks, right)[0] < ENOUGH
    names = [name for name in TAUGHT if name != "code" or can_refuse_system_calls()]
    found = run_distributed(ask, 1, tmp_path, tasks, names)[0]["tasks"]
    for name in names:
        for metric, score in found[name]["metrics"].items():
            most = 100.0 if metric in ("bleu", "chrf") else 1.0
            if metric == "perplexity":
                assert (score["value"] < 1.1) == right
                continue
            assert score["value"] == pytest.approx(most if right else 0.0, abs=2e-3 * most), (name, metric)
