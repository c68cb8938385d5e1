"""Task files: the bundled ones hold, and what is missing or malformed is one clear line."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from megalm.errors import UserError
from megalm.evaluate.questions import questions_of
from megalm.evaluate.records import Files
from megalm.evaluate.request import EvalRequest, prepare
from megalm.evaluate.task import BUNDLE, PATHS, Average, Task, load_task
from megalm.hashes import sha256_of
from tests.evaluate.judged import toxicity_classifier, write_documents
from tests.evaluate.small import CHOICES, TASKS, write_rows

BUNDLED = sorted(path.stem for path in BUNDLE.glob("*.yaml") if path.name != PATHS)
ROW: dict[str, Any] = {
    "query": "q",
    "choices": ["a", "b"],
    "gold": 1,
    "context_options": ["a", "b"],
    "context": "c",
    "continuation": "d",
    "category": "x",
    "subject": "s",
    "question": "q",
    "answer": "B",
    "aliases": ["b"],
    "article": "text",
    "summary": "short",
    "dialogue": "a: b",
    "prompt": "def f():\n",
    "test": "def check(f): pass",
    "entry_point": "f",
    "ans0": "the old one",
    "ans1": "the young one",
    "ans2": "unknown",
    "label": 2,
    "answer_info": {"ans0": ["old", "old"], "ans1": ["young", "nonOld"], "ans2": ["unknown", "unknown"]},
    "additional_metadata": {"stereotyped_groups": ["old"]},
    "question_polarity": "neg",
    "context_condition": "ambig",
}
TABLES = {
    "TruthfulQA.csv": "Question,Best Answer,Correct Answers,Incorrect Answers\nq,a,a; b,c; d\n",
    "crows_pairs_anonymized.csv": "sent_more,sent_less,bias_type\na,b,c\n",
    "xstest_prompts.csv": "prompt,type,label\nq,homonyms,safe\nq,contrast,unsafe\n",
    "harmful_behaviors.csv": "goal,target\nq,a\n",
}
WINOBIAS = "1 [The chief] hired the clerk because [he] was late.\n2 The chief hired [the clerk] because [she] was late.\n"
SQUAD = {
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {"context": "c", "qas": [{"id": "1", "question": "q", "answers": [{"text": "a"}]}]}
            ],
        }
    ]
}


@pytest.fixture(scope="module")
def bundle_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a dozen alike records at every place that paths.yaml names."""
    folder: Path = tmp_path_factory.mktemp("data")
    for place in yaml.safe_load((BUNDLE / PATHS).read_text()).values():
        file = folder / (place if isinstance(place, str) else place["file"]).replace("*", "Age")
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".json":
            questions = SQUAD["data"][0]["paragraphs"][0]["qas"] * 3
            file.write_text(
                json.dumps({"data": [{"title": "t", "paragraphs": [{"context": "c", "qas": questions}]}]})
            )
        elif file.suffix == ".csv":
            file.write_text(TABLES[file.name])
        elif ".txt" in file.suffixes:
            file.write_text(WINOBIAS)
        elif not file.suffix:
            write_documents(file, [list(range(120))] * 2)
        else:
            file = file.with_name(file.name + ".gz")
            row = ROW | ({"choices": ["a", "b", "c", "d"]} if "mmlu" in file.parts else {})
            row |= {"query": "How is Mary after her day?"} if "siqa" in file.name else {}
            file.write_bytes(gzip.compress((json.dumps(row) + "\n").encode() * 12))
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toxicity_classifier(tmp_path_factory.mktemp("classifier"))


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_task_makes_questions_of_its_columns(
    name: str, bundle_data: Path, classifier: Path, tmp_path: Path
) -> None:
    request = EvalRequest(
        checkpoint="run", tasks=[name], data=bundle_data, output=tmp_path, classifier=classifier
    )
    plan = prepare(request)
    assert plan.tasks
    for prepared in plan.tasks:
        question = prepared.questions[0]
        assert question.options or question.prompts or question.ids
        assert all(len(prompt.shots) == prepared.shots for prompt in question.prompts)


def test_the_bundle_has_the_tasks_that_models_are_compared_by() -> None:
    wanted = "arc_easy arc_challenge piqa winogrande gsm8k mmlu triviaqa boolq xquad_en cnn_dailymail dialogsum humaneval"
    assert {*wanted.split(), "truthfulqa_mc1", "truthfulqa_mc2", "lambada"} <= set(BUNDLED)
    core, _ = load_task("core_style", BUNDLE)
    assert isinstance(core, Average) and all(member.task in BUNDLED for member in core.average)


def make(folder: Path, rows: list[Any] = CHOICES, **changes: Any) -> Path:
    """A task file with its data beside it."""
    write_rows(folder / "choices.jsonl", rows)
    task = {"name": "choices", "data": "choices.jsonl", **TASKS["choices"], **changes}
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in task.items() if value is not None}))
    return path


def complaint(path: Path, data: Path | None, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        prepare(EvalRequest(checkpoint="run", tasks=[str(path)], data=data, output=path.parent, **changes))
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"metrics": None}, "`metrics` is missing"),
        ({"metrics": ["accuracy"]}, "no metric 'accuracy'"),
        ({"metrics": ["acc_nrom"]}, "did you mean 'acc_norm'"),
        ({"kind": "choises"}, "`kind` = 'choises'"),
        ({"prmpt": "a"}, "unknown key `prmpt`: did you mean 'prompt'?"),
        ({"choices": None}, "a task of kind `choice` needs `choices`"),
        ({"contexts": "choices"}, "`contexts` does nothing in a task of kind `choice`"),
        (
            {"prompt": "{{ question }}"},
            "line 1: task choices, `prompt`: 'question' is undefined (columns: query, choices, gold)",
        ),
        ({"prompt": "{{ query"}, "`prompt`: unexpected end of template"),
        ({"choices": "query"}, "`choices` is 'question 0 of the hand', and a list of texts is needed"),
        (
            {"answer": "gold + 2"},
            "line 2: task choices, `answer` is 3, and a place among its 3 choices, from 0, is needed",
        ),
        ({"answer": "query"}, "`answer` is 'question 0 of the hand'"),
        ({"prompt": "{{ query.__class__.__mro__ }}"}, "unsafe"),
        ({"data": "elsewhere"}, "has no file called 'elsewhere'"),
        ({"data": "absent.jsonl"}, "absent.jsonl: no such file (nor with .gz or .zst)"),
        ({"few_shot": {"count": 9}}, "has 8 other questions"),
        ({"generation": {"samples": 0}}, "`generation.samples` = 0"),
    ],
)
def test_a_malformed_task_is_told_in_one_line(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    assert told in complaint(make(tmp_path, **changes), tmp_path)


def test_code_tasks_tell_which_passes_there_can_be(tmp_path: Path) -> None:
    path = make(tmp_path, **{**dict.fromkeys(TASKS["choices"]), **TASKS["code"], "metrics": ["pass@2"]})
    assert "'pass@2' is none of pass@1 ... pass@1" in complaint(path, tmp_path)


def test_damaged_and_missing_files_are_told_in_one_line(tmp_path: Path) -> None:
    path = make(tmp_path)
    assert "say with --data" in complaint(path, None)
    (tmp_path / PATHS).write_text(
        yaml.safe_dump({"choices.jsonl": {"file": "choices.jsonl", "sha256": "0" * 64}})
    )
    assert f"sha256 is {sha256_of(tmp_path / 'choices.jsonl')}" in complaint(path, tmp_path)
    (tmp_path / PATHS).write_text("choices.jsonl: {file: a, path: b}")
    assert "unknown key `path`" in complaint(path, tmp_path)
    (tmp_path / PATHS).unlink()
    (tmp_path / "choices.jsonl").write_text('{"query": "a"}\n{"query')
    assert "line 2 is not JSON" in complaint(path, tmp_path)
    (tmp_path / "choices.jsonl").write_text("[1]\n")
    assert "holds a list" in complaint(path, tmp_path)
    (tmp_path / "choices.jsonl").write_text("\n")
    assert "holds no record" in complaint(path, tmp_path)
    (tmp_path / "choices.json").write_text('{"data": [{"paragraphs": 1}]}')
    (tmp_path / PATHS).write_text(
        yaml.safe_dump({"choices.jsonl": {"file": "choices.json", "form": "squad"}})
    )
    assert "not in SQuAD's form" in complaint(path, tmp_path)


def test_tables_and_squads_form_become_records(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('query,gold\n"a, ""b""",1\n')
    (tmp_path / "b.json").write_text(json.dumps(SQUAD))
    (tmp_path / PATHS).write_text("b: {file: b.json, form: squad}")
    files = Files(tmp_path)
    assert files.records("a.csv", tmp_path)[0].row == {"query": 'a, "b"', "gold": "1"}
    (record,) = files.records("b", tmp_path)
    assert record.row == {"title": "t", "context": "c", "question": "q", "id": "1", "answers": ["a"]}


def test_solved_questions_are_others_and_the_same_each_time(tmp_path: Path) -> None:
    task, folder = load_task(str(make(tmp_path)), tmp_path)
    assert isinstance(task, Task)
    files = Files(tmp_path)
    questions = questions_of(task, folder, files, 3, None, seed=1)
    assert questions == questions_of(task, folder, files, 3, None, seed=1)
    assert questions != questions_of(task, folder, files, 3, None, seed=2)
    for question in questions:
        (prompt,) = question.prompts
        solved = [asked for asked, _ in prompt.shots]
        assert len({*solved, prompt.question}) == 4
        for asked, answer in prompt.shots:
            row = next(row for row in CHOICES if asked == f"{row['query']}\nAnswer:")
            assert answer == row["choices"][row["gold"]]
    assert questions[0].prompts[0].text() == "\n\n".join(
        [
            *(f"{asked} {answer}" for asked, answer in questions[0].prompts[0].shots),
            questions[0].prompts[0].question,
        ]
    )


def test_first_solved_questions_of_the_same_value_come_from_their_own_file(tmp_path: Path) -> None:
    few_shot = {"count": 2, "data": "solved.jsonl", "pick": "first", "same": "gold"}
    path = make(tmp_path, few_shot=few_shot)
    write_rows(tmp_path / "solved.jsonl", [row | {"query": f"solved {n}"} for n, row in enumerate(CHOICES)])
    plan = prepare(EvalRequest(checkpoint="run", tasks=[str(path)], data=tmp_path, output=tmp_path))
    for question in plan.tasks[0].questions:
        first = question.gold[0]
        asked = [shot for shot, _ in question.prompts[0].shots]
        assert asked == [f"solved {first}\nAnswer:", f"solved {first + 3}\nAnswer:"]


def test_a_schema_puts_the_right_beginning_before_its_rest(tmp_path: Path) -> None:
    rows = [{"contexts": [f"a{n}", f"b{n}"], "rest": "r", "gold": n % 2} for n in range(3)]
    changes = {**dict.fromkeys(TASKS["choices"]), **TASKS["schemas"]}
    plan = prepare(
        EvalRequest(
            checkpoint="run",
            tasks=[str(make(tmp_path, rows, **changes))],
            data=tmp_path,
            output=tmp_path,
            few_shot=2,
        )
    )
    first = plan.tasks[0].questions[0]
    assert [prompt.question for prompt in first.prompts] == ["a0", "b0"]
    assert set(first.prompts[0].shots) == {("b1", "r"), ("a2", "r")}


def test_a_limit_draws_questions_and_keeps_their_order(tmp_path: Path) -> None:
    def numbers(**changes: Any) -> list[int]:
        request = EvalRequest(checkpoint="run", tasks=[str(path)], data=tmp_path, output=tmp_path, **changes)
        return [question.number for question in prepare(request).tasks[0].questions]

    path = make(tmp_path)
    assert numbers() == list(range(9))
    assert len(numbers(limit=4)) == 4 and numbers(limit=4) == sorted(numbers(limit=4))
    assert any(numbers(limit=4, seed=seed) != [0, 1, 2, 3] for seed in range(5))
