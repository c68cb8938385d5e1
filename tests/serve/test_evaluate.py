"""`megalm eval` of a served model finds what it finds of the model itself."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megalm.cli import main
from megalm.testing import run_distributed
from tests.evaluate.small import TASKS, evaluate, write_tasks
from tests.serve.servers import Server, serving

NAMES = [name for name in TASKS if name != "code"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("asked") / "tasks")


@pytest.fixture(scope="module")
def exact(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The model in float64, so that no digit depends on the batch."""
    model = {"checkpoint": str(run), "name": "tiny", "dtype": "fp64"}
    with serving(tmp_path_factory.mktemp("server"), models=[model]) as found:
        yield found


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["eval", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def metrics_of(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {
        name: {metric: score["value"] for metric, score in entry["metrics"].items()}
        for name, entry in results["tasks"].items()
    }


def test_scores_are_those_of_the_model_itself(
    exact: Server, run: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (alone, *_) = run_distributed(measure, 1, run, tmp_path / "alone", tasks)
    arguments = [exact.api, "--tokenizer", run / "tokenizer", "--data", tasks, "--task-folder", tasks]
    arguments += ["--tasks", ",".join(NAMES), "--few-shot", 1, "-o", tmp_path / "served", "--json"]
    code, out, err = ask(capsys, *arguments)
    assert code == 0, err
    found = json.loads(out)
    assert found["model"]["name"] == "tiny" and found["model"]["address"] == exact.api
    for name, metrics in metrics_of(found).items():
        assert metrics == pytest.approx(metrics_of(alone)[name], rel=1e-9), name
    assert found["asked"]["answered_before"] == 0
    again = json.loads(ask(capsys, *arguments)[1])
    assert again["asked"]["answered_before"] == again["asked"]["questions"] == found["asked"]["questions"]
    assert metrics_of(again) == metrics_of(found)


def measure(run: Path, output: Path, tasks: Path) -> dict[str, Any]:
    return evaluate(str(run), str(output), data=tasks, tasks=NAMES, few_shot=1)


def test_what_cannot_be_asked_is_one_line(
    exact: Server, run: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--tasks", "choices", "--data", tasks, "--task-folder", tasks, "-o", tmp_path]
    named = ["--tokenizer", run]
    for arguments, message in (
        ([exact.api, *common], "--tokenizer is missing"),
        ([exact.api, *common, *named, "--model", "other"], "has no model 'other' (it has tiny)"),
        ([exact.api, *common, *named, "--nproc", 2], "a server is asked by one process"),
        ([exact.api, *common, *named, "--tensor-model-parallel-size", 2], "a server has its own layout"),
        ([exact.api, *common[:-2], *named], "name a directory for the results"),
        (["http://127.0.0.1:9/v1", *common, *named], "check the address"),
        ([run, *common, *named], "are for the address of a server"),
    ):
        code, _, err = ask(capsys, *arguments)
        assert code == 2 and message in err, err
        assert err.count("\n") == 1
