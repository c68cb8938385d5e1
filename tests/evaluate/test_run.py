"""`megalm eval`: the same figures under every layout, as a plain loop over Hugging Face's model gives, and resumed after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from megalm.cli import main
from megalm.convert.run import convert
from megalm.errors import UserError
from megalm.evaluate.answers import FILE_NAME as ANSWERS
from megalm.evaluate.compare import changes as changes_of
from megalm.sandbox.confine import can_refuse_system_calls
from megalm.testing import run_distributed
from megalm.tokenizer import load_tokenizer
from tests.evaluate.small import CODE, CONTEXT, DOCUMENTS, TASKS, evaluate, make_run, write_rows, write_tasks
from tests.worlds import in_world

NAMES = [name for name in TASKS if name != "code"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder: Path = tmp_path_factory.mktemp("eval")
    return {"run": make_run(folder / "run"), "tasks": write_tasks(folder / "tasks"), "folder": folder}


def ask(run: Path, output: Path, tasks: Path, changes: dict[str, Any]) -> dict[str, Any]:
    return evaluate(str(run), str(output), data=tasks, tasks=NAMES, few_shot=1, **changes)


def metrics_of(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {
        name: {metric: score["value"] for metric, score in entry["metrics"].items()}
        for name, entry in results["tasks"].items()
    }


@pytest.fixture(scope="module")
def alone(places: dict[str, Path]) -> dict[str, Any]:
    return run_distributed(ask, 1, places["run"], places["folder"] / "alone", places["tasks"], {})[0]


@pytest.mark.parametrize(
    ("world", "changes"),
    [
        (2, {}),
        (2, {"tensor_model_parallel_size": 2, "batch_size": 7}),
        (2, {"pipeline_model_parallel_size": 2, "max_rows": 2}),
    ],
    ids=["DP2", "TP2", "PP2"],
)
def test_scores_are_the_same_under_every_layout_and_batch(
    places: dict[str, Path], alone: dict[str, Any], tmp_path: Path, world: int, changes: dict[str, Any]
) -> None:
    found = run_distributed(ask, world, places["run"], tmp_path, places["tasks"], changes)
    assert found[0] == found[-1]
    assert set(metrics_of(found[0])) == set(NAMES)
    for name, metrics in metrics_of(found[0]).items():
        assert metrics == pytest.approx(metrics_of(alone)[name], rel=1e-9), name


@pytest.mark.parametrize(("window", "stride"), [(CONTEXT, CONTEXT), (48, 16), (20, 7)])
def test_perplexity_equals_a_plain_loop_over_hugging_faces_model(
    places: dict[str, Path], tmp_path: Path, window: int, stride: int
) -> None:
    convert(places["run"], tmp_path / "hf", compare=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float64).eval()
    tokenizer = load_tokenizer(places["run"] / "tokenizer")
    nats, tokens, count = 0.0, 0, 0
    for document in DOCUMENTS:
        ids = [tokenizer.eod_id, *tokenizer.encode(document["text"])]
        for place in range(1, len(ids)):  # each token by itself, as far back as its window sees
            first = window if place > window else len(ids)
            end = (
                place if place <= first else min(len(ids) - 1, first + -(-(place - first) // stride) * stride)
            )
            end = min(window, len(ids) - 1) if place <= window else end
            seen = ids[max(0, end - window) : place]
            with torch.no_grad():
                logits_V = model(torch.tensor([seen])).logits[0, -1]
            nats -= float(logits_V.log_softmax(-1)[ids[place]])
        tokens += len(ids) - 1
        count += len(document["text"].encode())
    text = tmp_path / "documents.jsonl"
    write_rows(text, DOCUMENTS)
    changes = {"texts": [text], "window": window, "stride": stride}
    found = run_distributed(measure, 1, places["run"], tmp_path / "out", changes)[0]
    scores = metrics_of(found)[str(text)]
    assert scores["perplexity"] == pytest.approx(torch.tensor(nats / tokens).exp().item(), rel=1e-6)
    assert scores["bits_per_byte"] == pytest.approx(nats / count / torch.tensor(2.0).log().item(), rel=1e-6)


def measure(run: Path, output: Path, changes: dict[str, Any]) -> dict[str, Any]:
    return evaluate(str(run), str(output), **changes)


def test_what_was_answered_is_not_asked_again_even_under_another_layout(
    places: dict[str, Path], alone: dict[str, Any], tmp_path: Path
) -> None:
    arguments = places["run"], tmp_path, places["tasks"]
    assert run_distributed(ask, 1, *arguments, {})[0]["asked"]["answered_before"] == 0
    kept = (tmp_path / ANSWERS).read_bytes()
    again = run_distributed(ask, 2, *arguments, {"tensor_model_parallel_size": 2})[0]
    assert again["asked"]["answered_before"] == again["asked"]["questions"] == alone["asked"]["questions"]
    assert metrics_of(again) == metrics_of(alone)
    assert (tmp_path / ANSWERS).read_bytes() == kept
    other = run_distributed(ask, 1, *arguments, {"dtype": "fp32"})[0]
    assert other["asked"]["answered_before"] == 0


def command(places: dict[str, Path], output: Path, *more: str) -> list[str]:
    tasks = str(places["tasks"])
    return [
        "eval",
        str(places["run"]),
        "--tasks",
        ",".join(NAMES),
        *("--task-folder", tasks, "--data", tasks, "--output", str(output), "--dtype", "fp64"),
        *("--few-shot", "1", "--json", *more),
    ]


def lines_of(path: Path) -> Iterator[bytes]:
    if path.is_file():
        yield from path.read_bytes().splitlines(keepends=True)


@pytest.mark.slow
def test_a_kill_in_the_middle_resumes_without_computing_anything_twice(
    places: dict[str, Path], alone: dict[str, Any], tmp_path: Path
) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [sys.executable, "-m", "megalm", *command(places, tmp_path, "--batch-size", "1")],
        env=environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    answers, deadline = tmp_path / ANSWERS, time.monotonic() + 120
    while len(list(lines_of(answers))) < 10 and time.monotonic() < deadline:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = [line for line in lines_of(answers) if line.endswith(b"\n")]
    assert 10 <= len(kept) < alone["asked"]["questions"]
    with open(answers, "ab") as file:
        file.write(kept[0][:-5])  # a line that the kill cut off
    done = subprocess.run(
        [sys.executable, "-m", "megalm", *command(places, tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["asked"]["answered_before"] == len(kept)
    for name, metrics in metrics_of(results).items():
        assert metrics == pytest.approx(metrics_of(alone)[name], rel=1e-9)
    keys = [json.loads(line)[0] for line in lines_of(answers)]
    assert len(keys) == len(set(keys))
    found = changes_of(places["folder"] / "alone", tmp_path)
    assert {(change.task, change.metric) for change in found} == {
        (name, metric) for name, metrics in metrics_of(alone).items() for metric in metrics
    }
    for change in found:
        assert change.paired and change.is_better is None
        assert change.difference == pytest.approx(0, abs=1e-7 * change.before)


def test_results_grow_by_tasks_and_hold_every_question_with_its_answer(
    places: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("choices", "asked"):
        arguments = {"data": places["tasks"], "tasks": [name]}
        run_distributed(measure, 1, places["run"], tmp_path, arguments)
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["tasks"]) == ["choices", "asked"]
    samples = [json.loads(line) for line in lines_of(tmp_path / "samples" / "choices.jsonl")]
    assert len(samples) == results["tasks"]["choices"]["questions"] == 9
    score = results["tasks"]["choices"]["metrics"]["acc"]
    assert score["value"] == pytest.approx(sum(one["figures"]["acc"] for one in samples) / 9)
    assert score["low"] < score["value"] < score["high"]
    assert results["tasks"]["choices"]["chance"] == pytest.approx(1 / 3)


def test_an_average_asks_its_tasks_with_its_own_numbers_of_solved_questions(
    places: dict[str, Path], tmp_path: Path
) -> None:
    folder = write_tasks(tmp_path / "tasks")
    members = [
        {"task": "choices", "few_shot": 2, "metric": "acc_tokens"},
        {"task": "schemas", "chance": 0.25},
    ]
    (folder / "mean.yaml").write_text(yaml.safe_dump({"name": "mean", "average": members}))
    changes = {"data": folder, "tasks": ["mean", "choices"]}
    found = run_distributed(measure, 1, places["run"], tmp_path / "out", changes)[0]
    assert {label: entry["few_shot"] for label, entry in found["tasks"].items()} == {
        "choices:2": 2,
        "schemas": 0,
        "choices": 0,
    }
    choices = found["tasks"]["choices:2"]["metrics"]["acc_tokens"]["value"]
    schemas = found["tasks"]["schemas"]["metrics"]["acc"]["value"]
    expected = ((choices - 1 / 3) / (2 / 3) + (schemas - 0.25) / 0.75) / 2
    assert found["averages"]["mean"]["value"] == pytest.approx(expected)


@in_world(1)
def test_answers_lose_a_line_that_was_cut_off_and_refuse_a_damaged_one(tmp_path: Path) -> None:
    from megalm.evaluate.answers import Answers

    path = tmp_path / "new" / ANSWERS
    answers = Answers(path, "model")
    answers.add({answers.key("text", [1, 2]): ["a\nb"], answers.key("text", [1]): [-1.5, True]})
    answers.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'["abc", [')
    again = Answers(path, "model")
    assert path.read_bytes() == whole
    assert again.get(again.key("text", [1, 2])) == ["a\nb"] and again.get(again.key("text", [1])) == [
        -1.5,
        True,
    ]
    assert again.get(again.key("text", [2])) is None
    assert Answers(path, "other").get(Answers(path, "other").key("text", [1])) is None
    path.write_bytes(b"{}\n" + whole)
    with pytest.raises(UserError, match="line 1 is damaged; delete the file"):
        Answers(path, "model")


@pytest.mark.slow
def test_a_model_of_hugging_faces_is_asked_from_the_command_line(
    places: dict[str, Path], alone: dict[str, Any], tmp_path: Path
) -> None:
    convert(places["run"], tmp_path / "hf", compare=False)
    arguments = command(places, tmp_path / "out")
    arguments[1] = str(tmp_path / "hf")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "megalm", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for name, metrics in metrics_of(json.loads(done.stdout)).items():
        assert metrics == pytest.approx(metrics_of(alone)[name], rel=1e-9)


def test_a_conversation_asks_in_the_models_template(places: dict[str, Path], tmp_path: Path) -> None:
    changes = {
        "data": places["tasks"],
        "tasks": ["choices", "asked"],
        "few_shot": 1,
        "chat_template": "zephyr",
    }
    plain = run_distributed(measure, 1, places["run"], tmp_path / "plain", changes | {"chat_template": None})[
        0
    ]
    chat = run_distributed(measure, 1, places["run"], tmp_path / "chat", changes)[0]
    assert chat["tasks"]["choices"]["chat_template"] == "zephyr"
    assert metrics_of(chat)["choices"] != metrics_of(plain)["choices"]


@pytest.mark.skipif(not can_refuse_system_calls(), reason="needs seccomp")
def test_drawn_programs_are_the_same_on_every_number_of_copies(
    places: dict[str, Path], tmp_path: Path
) -> None:
    """And each question has its own draws: the same prompt twice is answered in different ways."""
    task = {"name": "drawn", "data": "twice.jsonl", **TASKS["code"], "metrics": ["pass@1", "pass@3"]}
    task["generation"] = {"max_new_tokens": 12, "samples": 3, "temperature": 1.0, "top_p": 1.0}
    (tmp_path / "drawn.yaml").write_text(yaml.safe_dump(task))
    write_rows(tmp_path / "twice.jsonl", [CODE[0], CODE[0], CODE[1]])
    written = []
    for world in (1, 2):
        output = tmp_path / f"out{world}"
        changes = {"data": tmp_path, "tasks": ["drawn"]}
        found = run_distributed(measure, world, places["run"], output, changes)[0]["tasks"]["drawn"]
        assert found["metrics"]["pass@1"]["value"] == found["metrics"]["pass@3"]["value"] == 0
        written.append([json.loads(line)["answer"] for line in lines_of(output / "samples" / "drawn.jsonl")])
    assert written[0] == written[1]
    assert len({text for texts in written[0] for text in texts}) == 9


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which a command ends."""
    assert main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "nothing to measure"),
        (["--tasks", "choises"], "did you mean 'choices'"),
        (["--tasks", "choices", "--limit", "0"], "--limit is 0"),
        (["--tasks", "choices", "--few-shot", "-1"], "--few-shot is -1"),
        (["--tasks", "choices", "--few-shot", "9"], "lower it"),
        (["--tasks", "choices", "--engine", "other"], "choose megalm or lm-eval"),
        (["--tasks", "choices", "--system", "Be short."], "add --chat"),
        (["--text", "missing.txt"], "no such file"),
        (["--text", "TASKS/documents.jsonl", "--window", "65"], "longer than the model's context of 64"),
        (["--text", "TASKS/documents.jsonl", "--window", "8", "--stride", "9"], "would leave tokens out"),
        (["--text", "TASKS/documents.jsonl", "--text-key", "body"], "columns: text"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_code_2(
    places: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    tasks = str(places["tasks"])
    given = [argument.replace("TASKS", tasks) for argument in arguments]
    common = ["--task-folder", tasks, "--data", tasks, "--output", str(tmp_path)]
    assert told in refused(capsys, "eval", str(places["run"]), *given, *common)
