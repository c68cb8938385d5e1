"""Every bundled task of knowledge and skill: who says what is right scores all there is, who says the contrary nothing.

The questions come out of the task files; what is right is told here, by the text of what is asked. Tasks of bias and safety, where nothing is
right or wrong: test_planted_bias.py.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from megalm.evaluate.answers import Answers
from megalm.evaluate.ask import Window, ask
from megalm.evaluate.encode import Encoder, Ids, Likelihood, Pair
from megalm.evaluate.model import AskedModel, Found
from megalm.evaluate.request import EvalRequest, Plan, prepare
from megalm.evaluate.results import average_of, entry_of, scores_of
from megalm.evaluate.task import BUNDLE, PATHS
from megalm.generate.request import GenerationOptions
from megalm.parallel.alone import world_of_one
from megalm.sandbox.confine import can_refuse_system_calls
from megalm.tokenizer import Tokenizer, load_tokenizer, train_bpe

ROWS = 12
GOOD, BAD = "the good one", "a bad thing"
SUMMARY = "a short text that says all of it"
PLACES = yaml.safe_load((BUNDLE / PATHS).read_text())
CHOICES = "arc_easy arc_challenge boolq commonsense_qa copa openbook_qa piqa siqa".split()
WRITTEN = "cnn_dailymail dialogsum gsm8k svamp triviaqa".split() + [
    f"xquad_{code}" for code in "ar de en es ru zh".split()
]
OTHERS = (
    "siqa_swapped mmlu truthfulqa_mc1 truthfulqa_mc2 winograd winogrande jeopardy lambada humaneval".split()
)


def choices(number: int) -> dict[str, Any]:
    """The right option is the first one of every other question."""
    told = [BAD, BAD]
    told[number % 2] = GOOD
    return {"query": f"How is Mary after her day {number}?", "choices": told, "gold": number % 2}


def schema(number: int) -> dict[str, Any]:
    return {
        "context_options": choices(number)["choices"],
        "continuation": f"is so, {number}.",
        "gold": number % 2,
    }


def mmlu(number: int) -> dict[str, Any]:
    told = [BAD] * 4
    told[number % 4] = GOOD
    return {
        "subject": f"s{number // 6}",
        "question": f"q{number}",
        "choices": told,
        "answer": "ABCD"[number % 4],
    }


def summed(number: int) -> dict[str, Any]:
    return {
        "question": f"sum {number}",
        "context": f"sum {number}",
        "answer": f"it is {number}, so\n#### {1000 + number}",
    }


def dialogue(number: int) -> dict[str, Any]:
    three = {f"summary{place}": f"{SUMMARY} {number + place - 2}" for place in (1, 2, 3)}
    return {"dialogue": f"A: {number}\nB: yes", **three}


MADE: dict[str, Callable[[int], dict[str, Any]]] = {
    **dict.fromkeys(CHOICES, choices),
    **dict.fromkeys(["winograd", "winogrande"], schema),
    **dict.fromkeys(["mmlu", "mmlu_dev"], mmlu),
    **dict.fromkeys(["gsm8k", "gsm8k_train"], summed),
    "svamp": lambda n: summed(n) | {"answer": 1000 + n},
    "lambada": lambda n: {"context": f"text {n} ends with the", "continuation": "word"},
    "jeopardy": lambda n: {"context": f"what is {n}", "continuation": "word", "category": f"c{n // 6}"},
    "triviaqa": lambda n: {"context": f"question {n}", "answer": f"Other {n}", "aliases": [f"Right {n}"]},
    "cnn_dailymail": lambda n: {"article": f"article {n}", "summary": f"{SUMMARY} {n}"},
    "dialogsum": dialogue,
    "dialogsum_dev": lambda n: {"dialogue": f"A: {n + 100}", "summary": f"{SUMMARY} {n + 100}"},
    "humaneval": lambda n: {
        "prompt": f"def f{n}():\n",
        "test": f"def check(f):\n    assert f() == {n}\n",
        "entry_point": f"f{n}",
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("data")
    for name, place in PLACES.items():
        file = folder / (place if isinstance(place, str) else place["file"])
        file.parent.mkdir(parents=True, exist_ok=True)
        if name in MADE:
            file.write_text("".join(json.dumps(MADE[name](number)) + "\n" for number in range(ROWS)))
        elif name.startswith("xquad"):
            asked = [
                {"id": str(n), "question": f"question {n}", "answers": [{"text": f"Right {n}"}]}
                for n in range(ROWS)
            ]
            told = {"title": "t", "paragraphs": [{"context": "paragraph", "qas": asked}]}
            file.write_text(json.dumps({"data": [told]}))
    rows = [f"q{n},{GOOD},{GOOD}; {GOOD} too,{BAD}; {BAD} too\n" for n in range(ROWS)]
    file = folder / PLACES["truthfulqa"]
    file.write_text("Question,Best Answer,Correct Answers,Incorrect Answers\n" + "".join(rows))
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.txt").write_text("the good one and a bad thing\n" * 10)
    train_bpe([folder / "text.txt"], 280, folder / "tokenizer")
    return load_tokenizer(folder / "tokenizer")


def is_right(context: str, continuation: str) -> bool:
    """Whether that is how a text goes on where all is well."""
    last = context.rsplit("\n\n", 1)[-1]
    if continuation.strip() in "ABCD":  # a letter of options that are listed
        return f"\n{continuation.strip()}. {GOOD}\n" in last
    if ", " in continuation and continuation.endswith("."):  # the rest behind an option
        return context.strip().endswith(GOOD)
    return continuation.strip() in (GOOD, f"{GOOD} too", "word")


def right_text(task: str, prompt: str) -> str:
    number = int(re.findall(r"\d+", prompt)[-1])
    if task == "humaneval":
        return f"    return {number}\n"
    if task in ("cnn_dailymail", "dialogsum"):
        return f" {SUMMARY} {number}"
    return f" It is {1000 + number}." if task in ("gsm8k", "svamp") else f" Right {number}"


class Planted:
    """A `Source` that knows, and says what is right or, where it is not `good`, the contrary."""

    length, rank, texts_at_once = 100_000, 0, 64

    def __init__(self, tokenizer: Tokenizer, good: bool) -> None:
        self.tokenizer, self.good, self.task = tokenizer, good, ""

    def likelihoods(self, pairs: Sequence[Pair], found: Callable[[Found], None]) -> None:
        for number, (context, continuation) in enumerate(pairs):
            right = is_right(self.tokenizer.decode(context), self.tokenizer.decode(continuation))
            value = 0.0 if right == self.good else -1000.0 * len(continuation)
            found([(number, Likelihood(value, right == self.good))])

    def texts(
        self, prompts: Sequence[Ids], options: GenerationOptions, numbers: Sequence[int]
    ) -> list[list[str]]:
        right = [right_text(self.task, self.tokenizer.decode(prompt)) for prompt in prompts]
        return [[text if self.good else "    QQ JJ QJ"] * options.n for text in right]


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    with world_of_one():
        yield


def planned(names: Sequence[str], data: Path) -> Plan:
    return prepare(EvalRequest(checkpoint="none", tasks=names, data=data, output=data / "out"))


def entries(plan: Plan, source: Planted, tokenizer: Tokenizer) -> dict[str, Any]:
    model = AskedModel(source, Encoder(tokenizer), Answers(None, ""))
    found = {}
    for prepared in plan.tasks:
        source.task = prepared.task.name
        asked = ask(
            model, prepared.task, prepared.questions, Window(100, 100), lambda _: None, prepared.judge
        )
        found[prepared.label] = entry_of(prepared, asked, scores_of(prepared, asked, 0), 0)
    return found


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("good", [True, False], ids=["right", "wrong"])
@pytest.mark.parametrize("name", [*CHOICES, *WRITTEN, *OTHERS])
def test_all_or_nothing(name: str, good: bool, data: Path, tokenizer: Tokenizer) -> None:
    if name == "humaneval" and not can_refuse_system_calls():
        pytest.skip("programs cannot be confined on this machine")
    (entry,) = entries(planned([name], data), Planted(tokenizer, good), tokenizer).values()
    assert entry["questions"] >= ROWS
    for metric, score in entry["metrics"].items():
        if metric == "perplexity":
            assert (score["value"] == 1) == good
            continue
        most = {"bleu": 100.0, "chrf": 100.0, "changed": 0.0, "acc_gap": 0.0}.get(metric, 1.0)
        assert score["value"] == pytest.approx(most if good else 0.0, abs=0.02 * most), metric


@pytest.mark.usefixtures("alone")
def test_the_average_of_what_is_right_is_one(data: Path, tokenizer: Tokenizer) -> None:
    plan = planned(["core_style"], data)
    found = entries(plan, Planted(tokenizer, True), tokenizer)
    ((average, members),) = plan.averages
    assert average_of(average, members, found)["value"] == pytest.approx(1)
