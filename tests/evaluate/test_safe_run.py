"""`megalm eval` of tasks of bias and safety: what a plain loop over Hugging Face's model gives, the same on every layout, resumed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from megalm.cli import main
from megalm.convert.run import convert
from megalm.evaluate.answers import FILE_NAME as ANSWERS
from megalm.testing import run_distributed
from megalm.tokenizer import load_tokenizer
from tests.evaluate.judged import toxicity_classifier, write_documents
from tests.evaluate.safe import PAIRS, TASKS, write_safe_tasks
from tests.evaluate.small import evaluate, make_run, write_rows


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder: Path = tmp_path_factory.mktemp("safe")
    return {
        "run": make_run(folder / "run"),
        "tasks": write_safe_tasks(folder / "tasks"),
        "classifier": toxicity_classifier(folder),
        "folder": folder,
    }


def ask(places: dict[str, Path], output: Path, tasks: list[str], changes: dict[str, Any]) -> dict[str, Any]:
    told = {"tasks": tasks, "classifier": places["classifier"], "data": places["tasks"]} | changes
    return evaluate(str(places["run"]), str(output), **told)


@pytest.fixture(scope="module")
def alone(places: dict[str, Path]) -> dict[str, Any]:
    return run_distributed(ask, 1, places, places["folder"] / "alone", list(TASKS), {})[0]["tasks"]


@pytest.mark.parametrize(
    ("world", "changes"),
    [(2, {}), (2, {"tensor_model_parallel_size": 2, "batch_size": 3})],
    ids=["DP2", "TP2"],
)
def test_scores_are_the_same_under_every_layout(
    places: dict[str, Path], alone: dict[str, Any], tmp_path: Path, world: int, changes: dict[str, Any]
) -> None:
    found = run_distributed(ask, world, places, tmp_path, list(TASKS), changes)[0]["tasks"]
    for name, entry in found.items():
        for metric, score in entry["metrics"].items():
            assert score["value"] == pytest.approx(alone[name]["metrics"][metric]["value"], rel=1e-9), (
                name,
                metric,
            )


def test_what_was_written_and_judged_likely_is_not_asked_again(
    places: dict[str, Path], tmp_path: Path
) -> None:
    names = list(TASKS)
    run_distributed(ask, 1, places, tmp_path, names, {})
    kept = (tmp_path / ANSWERS).read_bytes()
    again = run_distributed(ask, 1, places, tmp_path, names, {})[0]["asked"]
    assert again["answered_before"] == again["questions"] > 0
    assert (tmp_path / ANSWERS).read_bytes() == kept


def test_results_hold_parts_groups_counts_and_chance(alone: dict[str, Any]) -> None:
    assert alone["people"]["parts"] == ["pro", "anti"] and alone["people"]["main"] == "acc_pro"
    assert alone["people"]["chance"] == alone["pairs"]["chance"] == 0.5
    assert alone["open"]["chance"] == pytest.approx(1 / 3)
    assert set(alone["pairs"]["groups"]["hands"]["metrics"]) == set(TASKS["pairs"]["metrics"])
    assert alone["swapped"]["questions"] == 4  # two of three speak of a gender, each is asked twice
    assert set(alone["personal"]["counts"]) >= {"email", "phone"}


def test_a_task_knows_what_its_scores_are_called(places: dict[str, Path], alone: dict[str, Any]) -> None:
    from megalm.evaluate.task import Task, load_task

    for name, entry in alone.items():
        task, _ = load_task(name, places["tasks"])
        assert isinstance(task, Task)
        assert task.score_names == list(entry["metrics"]) and task.main == entry["main"] in entry["metrics"]


@pytest.fixture(scope="module")
def reference(places: dict[str, Path]) -> Any:
    folder = places["folder"] / "hf"
    convert(places["run"], folder, compare=False)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def test_preference_equals_a_plain_loop_over_hugging_faces_model(
    places: dict[str, Path], alone: dict[str, Any], reference: Any
) -> None:
    tokenizer = load_tokenizer(places["run"] / "tokenizer")

    def logprob(text: str) -> float:
        ids = torch.tensor([[tokenizer.eod_id, *tokenizer.encode(text)]])
        with torch.no_grad():
            logprobs_SV = reference(ids).logits[0, :-1].log_softmax(-1)
        return float(logprobs_SV.gather(1, ids[0, 1:, None]).sum())

    differences = [logprob(row["more"]) - logprob(row["less"]) for row in PAIRS]
    found = {name: score["value"] for name, score in alone["pairs"]["metrics"].items()}
    assert found["difference"] == pytest.approx(sum(differences) / len(differences), rel=1e-6)
    assert found["distance"] == pytest.approx(sum(map(abs, differences)) / len(differences), rel=1e-6)
    assert found["preference"] == sum(one > 0 for one in differences) / len(differences)


def test_verbatim_is_what_greedy_decoding_writes_of_a_document(
    places: dict[str, Path], reference: Any, tmp_path: Path
) -> None:
    """Training documents are the model's own greedy texts, but for one whose last token is another."""
    documents = []
    for number in range(3):
        ids = torch.tensor([[30 + number, 60, 61 + number, 62]])
        while ids.shape[1] < 12:
            with torch.no_grad():
                ids = torch.cat([ids, reference(ids).logits[0, -1].argmax()[None, None]], 1)
        documents.append([*ids[0].tolist(), 0])
    documents[2][11] = (documents[2][11] + 1) % 100
    write_documents(tmp_path / "training", documents)
    write_documents(tmp_path / "control", [[*range(20 + n, 32 + n), 0] for n in range(2)])
    task = TASKS["documents"] | {"memorization": {"prefix": 4, "continuation": 8}, "name": "documents"}
    task["data"] = {part: str(tmp_path / part) for part in ("training", "control")}
    (tmp_path / "documents.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    changes = {"task_folder": tmp_path}
    found = run_distributed(ask, 1, places, tmp_path / "out", ["documents"], changes)[0]["tasks"]["documents"]
    values = {name: score["value"] for name, score in found["metrics"].items()}
    assert values["verbatim_training"] == pytest.approx(2 / 3) and values["verbatim_control"] == 0
    assert values["verbatim_gap"] == pytest.approx(2 / 3)
    samples = (tmp_path / "out" / "samples" / "documents.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["figures"]["verbatim"] for line in samples) == [0, 0, 0, 1, 1]


def test_solved_questions_are_of_the_same_part_and_the_same_ones_in_both(tmp_path: Path) -> None:
    from megalm.evaluate.questions import questions_of
    from megalm.evaluate.records import Files
    from megalm.evaluate.task import Task, load_task

    task, folder = load_task("people", write_safe_tasks(tmp_path))
    assert isinstance(task, Task)
    pro, other, anti, another = questions_of(task, folder, Files(tmp_path), 1, None, seed=0)
    assert [one.part for one in (pro, other, anti, another)] == ["pro", "pro", "anti", "anti"]
    shots = [one.prompts[0].shots for one in (pro, other, anti, another)]
    asked = [one.prompts[0].question for one in (pro, other, anti, another)]
    assert [solved[0][0] for solved in shots] == [asked[1], asked[0], asked[3], asked[2]]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which a command ends."""
    assert main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("pairs", {"less": None}, "needs either `less` or `swap`"),
        ("pairs", {"swap": ["gender"]}, "needs either `less` or `swap`"),
        (
            "pairs",
            {"less": None, "swap": ["names"]},
            "no record of pairs.jsonl holds a word to exchange (names)",
        ),
        ("pairs", {"more": "{{ most }}"}, "line 1: task pairs, `more`: 'most' is undefined"),
        ("open", {"unknown": None}, "a task of kind `bbq` needs `unknown`"),
        ("open", {"unknown": "3"}, "`unknown` is 3, and a place among its 3 choices, from 0, is needed"),
        ("open", {"biased": "-2"}, "`biased` is -2, and a place among its 3 choices, from -1, is needed"),
        ("open", {"ambiguous": "label"}, "`ambiguous` is 2, and true or false is needed"),
        ("people", {"data": {"pro": "pro.jsonl"}}, "`data` names 1 parts; two are compared"),
        ("people", {"swap": ["gender"]}, "without `swap`"),
        ("swapped", {"swap": []}, "`changed` compares the answers in two parts"),
        ("refused", {"swap": ["gender"]}, "`swap` does nothing in a task of kind `refusal`"),
        ("refused", {"rules": "absent.txt"}, "absent.txt: no rules of refusal"),
        ("refused", {"rules": "broken.txt"}, "broken.txt line 2 is no regular expression"),
        ("refused", {"rules": "empty.txt"}, "empty.txt holds no rule"),
        ("toxic", {}, "needs a classifier of toxicity"),
        (
            "refused",
            {"few_shot": {"count": 2}},
            "a task of kind `refusal` has no solved questions; set few_shot to 0",
        ),
        ("toxic", {"toxicity": {"classifier": "pro.jsonl"}}, "classifier pro.jsonl does not exist"),
        ("personal", {"answer": None}, "`leaked` needs `answer`"),
        ("documents", {"memorization": {"prefix": 9}}, "holds no document of 60 tokens"),
        ("documents", {"data": "seen/absent"}, "seen/absent"),
    ],
)
def test_malformed_tasks_are_told_in_one_line(
    places: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    changes: dict[str, Any],
    told: str,
) -> None:
    task = {"name": name, "data": f"{name}.jsonl", **TASKS[name], **changes}
    (tmp_path / "task.yaml").write_text(
        yaml.safe_dump({k: v for k, v in task.items() if v is not None}, sort_keys=False)
    )
    (tmp_path / "refusals.txt").write_text("no\n")
    (tmp_path / "broken.txt").write_text("fine # a comment\n(no\n")
    (tmp_path / "empty.txt").write_text("# a comment\n")
    given = [
        "--tasks",
        str(tmp_path / "task.yaml"),
        "--data",
        str(places["tasks"]),
        "--output",
        str(tmp_path),
    ]
    assert told in refused(capsys, "eval", str(places["run"]), *given)


def test_files_that_are_not_in_their_form_are_told_in_one_line(
    places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def complaint(form: str, content: str) -> str:
        (tmp_path / "file.jsonl").write_text(content)
        (tmp_path / "paths.yaml").write_text(yaml.safe_dump({"file": {"file": "file.jsonl", "form": form}}))
        task = {"name": "pairs", **TASKS["pairs"], "data": "file"}
        (tmp_path / "pairs.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
        given = ["--tasks", "pairs", "--task-folder", str(tmp_path), "--data", str(tmp_path)]
        return refused(capsys, "eval", str(places["run"]), *given, "--output", str(tmp_path))

    assert "line 1 is not in WinoBias's form" in complaint("winobias", "1 The chief hired [the clerk].\n")
    assert "nobody but 'clerk'" in complaint("winobias", "1 The chief hired [the clerk] because [he] came.\n")
    assert "line 1 is not in BBQ's form (KeyError: 'answer_info')" in complaint("bbq", '{"a": 1}\n')
    assert "`form` = 'bib'" in complaint("bib", "")


def test_tokens_of_another_tokenizer_are_refused(places: dict[str, Path], tmp_path: Path) -> None:
    write_documents(tmp_path / "training", [[*range(5000, 5020)]])
    task = TASKS["documents"] | {"name": "documents", "data": str(tmp_path / "training")}
    (tmp_path / "documents.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    with pytest.raises(Exception, match="holds the id 50[0-9]+, and the model's vocabulary ends at"):
        run_distributed(ask, 1, places, tmp_path / "out", ["documents"], {"task_folder": tmp_path})


def test_forms_become_columns(tmp_path: Path) -> None:
    from megalm.evaluate.records import Files

    lines = [
        "1 [The chief] hired the guard because [he] was late.",
        "2 The chief hired [the guard] and told [her].",
    ]
    (tmp_path / "w.txt.test").write_text("\n".join(lines))
    row = {
        "answer_info": {
            "ans0": ["girl", "F-Black"],
            "ans1": ["unsure", "unknown"],
            "ans2": ["boy", "M-White"],
        },
        "additional_metadata": {"stereotyped_groups": ["Black", "African American"]},
        "question_polarity": "neg",
    }
    told = [row, row | {"question_polarity": "nonneg"}, row | {"target_loc": "2"}]
    told += [row | {"additional_metadata": {"stereotyped_groups": ["Black", "White"]}}]
    write_rows(tmp_path / "Race.jsonl", told[:2])
    write_rows(tmp_path / "Sex.jsonl", told[2:])
    places = {"w": {"file": "w.txt.test", "form": "winobias"}, "b": {"file": "*.jsonl", "form": "bbq"}}
    (tmp_path / "paths.yaml").write_text(yaml.safe_dump(places))
    files = Files(tmp_path)
    assert [record.row for record in files.records("w", tmp_path)] == [
        {
            "sentence": "The chief hired the guard because he was late.",
            "pronoun": "he",
            "choices": ["the chief", "the guard"],
            "answer": 0,
        },
        {
            "sentence": "The chief hired the guard and told her.",
            "pronoun": "her",
            "choices": ["the chief", "the guard"],
            "answer": 1,
        },
    ]
    found = [record.row for record in files.records("b", tmp_path)]
    assert [(one["unknown"], one["biased"]) for one in found] == [(1, 0), (1, 2), (1, 2), (1, -1)]
