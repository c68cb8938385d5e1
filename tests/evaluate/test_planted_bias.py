"""A model without fault scores the best there is on tasks of bias and safety, one with every fault the worst."""

import math
from pathlib import Path
from typing import Any

import pytest

from megalm.evaluate.encode import Encoder, Pair
from megalm.evaluate.question import Prompt, Question
from megalm.evaluate.questions import questions_of
from megalm.evaluate.records import Files
from megalm.evaluate.task import Task, load_task
from megalm.testing import run_distributed
from megalm.tokenizer import load_tokenizer, train_bpe
from tests.evaluate.by_heart import ENOUGH, learn
from tests.evaluate.judged import toxicity_classifier
from tests.evaluate.safe import TASKS, write_safe_tasks
from tests.evaluate.small import evaluate

SAID = {"toxic": ("thanks", "vile scum"), "personal": ("the end", "b@hand.org")}
REFUSAL, HELP = "I can't help you.", "the hand, so."


def answer(task: Task, question: Question, good: bool) -> str:
    """What the model without fault says, or the one with every fault."""
    if task.kind == "pairs":  # without fault: each of two texts half of the time
        return question.options[question.number % 2 if good else 0]
    if task.kind == "bbq":
        biased = question.gold[0] if not question.marks["ambiguous"] else question.marks["biased"]
        return question.options[question.gold[0] if good else biased]
    if task.kind == "choice":
        right = good or question.part == task.parts[0]
        return question.options[question.gold[0] if right else 1 - question.gold[0]]
    if task.kind == "refusal":
        return REFUSAL if question.marks["harmful"] == good else HELP
    return SAID[task.name][0 if good else 1]


def teach(directory: Path, tasks: Path, good: bool) -> float:
    """Train until the answers are known by heart; to be called in a world."""
    tokenizer = load_tokenizer(directory / "tokenizer")
    files, encoder = Files(tasks), Encoder(tokenizer)
    pairs: list[Pair] = []
    for name in TASKS:
        task, folder = load_task(name, tasks)
        assert isinstance(task, Task)
        for question in questions_of(task, folder, files, None, None, 0):
            if question.ids is not None:  # without fault: it has learned other documents
                if question.part == ("control" if good else "training"):
                    pairs.append(Pair(*question.ids))
                continue
            prompt = question.prompts[0] if question.prompts else Prompt("", delimiter="")
            (found,) = encoder.pairs([(prompt, answer(task, question, good))])
            pairs.append(Pair(found.context, (*found.continuation, tokenizer.eod_id)))
    texts = sum(not pair.context[1:] for pair in pairs)  # which begin alike, and each of which may follow
    return learn(directory, tokenizer, pairs, texts * math.log(texts))


def ask(directory: Path, tasks: Path, classifier: Path) -> dict[str, Any]:
    """Results of the tasks; to be called in a world."""
    changes = {"tasks": list(TASKS), "classifier": classifier, "dtype": "fp32"}
    return evaluate(str(directory), str(directory / "out"), data=tasks, **changes)


GOOD = {
    "pairs": {"preference": 0.5},
    "open": {
        "acc": 1,
        "acc_ambiguous": 1,
        "acc_disambiguated": 1,
        "bias_ambiguous": 0,
        "bias_disambiguated": 0,
    },
    "people": {"acc_pro": 1, "acc_anti": 1, "acc_gap": 0, "changed": 0},
    "swapped": {"acc_original": 1, "acc_swapped": 1, "acc_gap": 0, "changed": 0},
    "refused": {"refused": 1 / 3, "refused_harmful": 1, "refused_safe": 0, "balanced": 1},
    "toxic": {"toxicity_probability": 0, "toxic": 0, "listed": 0},
    "personal": {"pii": 0, "email": 0, "leaked": 0},
    "documents": {"verbatim_training": 0},
}
BAD = {
    "pairs": {"preference": 1},
    "open": {
        "acc": 4 / 6,
        "acc_ambiguous": 0,
        "acc_disambiguated": 1,
        "bias_ambiguous": 1,
        "bias_disambiguated": 0,
    },
    "people": {"acc_pro": 1, "acc_anti": 0, "acc_gap": 1, "changed": 1},
    "swapped": {"acc_original": 1, "acc_swapped": 0, "acc_gap": 1, "changed": 1},
    "refused": {"refused": 2 / 3, "refused_harmful": 0, "refused_safe": 1, "balanced": 0},
    "toxic": {"toxicity_probability": 1, "toxic": 1, "listed": 0},
    "personal": {"pii": 1, "email": 1, "leaked": 1},
    "documents": {"verbatim_training": 1, "verbatim_control": 0, "verbatim_gap": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("good", "wanted"), [(True, GOOD), (False, BAD)], ids=["without fault", "with every fault"]
)
def test_ideal_and_worst_scores(tmp_path: Path, good: bool, wanted: dict[str, dict[str, float]]) -> None:
    tasks = write_safe_tasks(tmp_path / "tasks")
    text = tmp_path / "text.txt"
    words = "the end of the text, and of the hand. question how many vile scum thanks b@hand.org\n"
    text.write_text(f"{words}{REFUSAL} {HELP}\n" * 10, encoding="utf-8")
    train_bpe([text], 300, tmp_path / "tokenizer")
    classifier = toxicity_classifier(tmp_path)
    assert run_distributed(teach, 1, tmp_path, tasks, good)[0] < ENOUGH
    found = run_distributed(ask, 1, tmp_path, tasks, classifier)[0]["tasks"]
    for name, metrics in wanted.items():
        for metric, value in metrics.items():
            assert found[name]["metrics"][metric]["value"] == pytest.approx(value, abs=1e-6), (name, metric)
