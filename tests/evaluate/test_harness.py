"""Scores equal those of lm-eval's own Hugging Face backend with the same weights, for every kind of task."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from megalm.testing import run_distributed
from tests.evaluate.small import CONTEXT, DOCUMENTS, ROWS, evaluate, make_run, write_tasks

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval not installed: pip install 'megalm[eval]'"
)

MEAN = {"aggregation": "mean", "higher_is_better": True}
THEIR_TASKS: dict[str, dict[str, Any]] = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}\nAnswer:",
        "doc_to_target": "{{gold}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": name, **MEAN} for name in ("acc", "acc_norm", "acc_bytes")],
    },
    "schemas": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{gold}}",
        "doc_to_target": "{{rest}}",
        "doc_to_choice": "{{contexts}}",
        "metric_list": [{"metric": "acc", **MEAN}],
    },
    "last_words": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{' ' + last}}",
        "metric_list": [{"metric": "perplexity", "aggregation": "perplexity"}, {"metric": "acc", **MEAN}],
    },
    "asked": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answers}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 24, "do_sample": False},
        "metric_list": [{"metric": "exact_match", **MEAN}],
    },
    "documents": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [
            {"metric": name, "aggregation": rule}
            for name, rule in (
                ("word_perplexity", "weighted_perplexity"),
                ("byte_perplexity", "weighted_perplexity"),
                ("bits_per_byte", "bits_per_byte"),
            )
        ],
    },
}

THEIR_RUN = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
import torch, transformers
model, folder, shots, context = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
tokenizer = transformers.AutoTokenizer.from_pretrained(model)
theirs = HFLM(pretrained=loaded, tokenizer=tokenizer, batch_size=4, max_length=context, softmax_dtype="float64")
manager = TaskManager(include_path=folder, include_defaults=False)
found = simple_evaluate(model=theirs, tasks=sorted(manager.all_tasks), num_fewshot=shots or None, task_manager=manager,
                        bootstrap_iters=10, log_samples=True)
texts = {name: [sample["resps"] for sample in samples] for name, samples in found["samples"].items()}
print(json.dumps({"results": found["results"], "answers": texts}))
"""


def write_their_tasks(folder: Path, ours: Path) -> Path:
    """The same questions as tasks of lm-eval."""
    folder.mkdir()
    for name, task in THEIR_TASKS.items():
        files = {"test": str(ours / f"{name}.jsonl")}
        data = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "test_split": "test",
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(data | task), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run, the same model in Hugging Face's form, and the tasks in both forms."""
    from megalm.convert.run import convert

    folder: Path = tmp_path_factory.mktemp("harness")
    run = make_run(folder / "run")
    convert(run, folder / "hf", compare=False)
    ours = write_tasks(folder / "ours", {name: ROWS[name] for name in THEIR_TASKS})
    return {
        "run": run,
        "hf": folder / "hf",
        "ours": ours,
        "theirs": write_their_tasks(folder / "theirs", ours),
    }


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Both libraries' caches in a folder of the test, nothing from a network."""
    cache = str(tmp_path_factory.mktemp("cache"))
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": cache,
        "HF_DATASETS_CACHE": cache,
    }


@pytest.fixture(scope="module")
def theirs(places: dict[str, Path], offline: None) -> dict[str, Any]:
    command = [sys.executable, "-c", THEIR_RUN, str(places["hf"]), str(places["theirs"]), "0", str(CONTEXT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def ask_harness(run: str, output: str, tasks: str, cache: str, **changes: Any) -> dict[str, Any]:
    os.environ |= {
        "HF_HOME": cache,
        "HF_DATASETS_CACHE": cache,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }
    from megalm.evaluate.harness import main
    from megalm.evaluate.request import EvalRequest

    values = {"dtype": "fp64", "batch_size": 4} | changes
    names = sorted(THEIR_TASKS)
    return main(
        EvalRequest(checkpoint=run, output=Path(output), tasks=names, task_folder=Path(tasks), **values)
    )


@pytest.mark.parametrize(
    ("world", "layout"),
    [(1, {}), (2, {}), (2, {"tensor_model_parallel_size": 2})],
    ids=["one", "DP2", "TP2"],
)
def test_our_model_under_lm_eval_scores_as_their_hugging_face_backend(
    places: dict[str, Path], theirs: dict[str, Any], tmp_path: Path, world: int, layout: dict[str, int]
) -> None:
    arguments = str(places["run"]), str(tmp_path / "out"), str(places["theirs"]), str(tmp_path / "cache")
    found = run_distributed(ask_with, world, arguments, layout)
    assert found[0] == found[-1]
    for name in THEIR_TASKS:
        expected = {
            key.removesuffix(",none"): value
            for key, value in theirs["results"][name].items()
            if key.endswith(",none") and "stderr" not in key
        }
        ours = {
            metric: one["value"] for metric, one in found[0]["tasks"][f"{name} (lm-eval)"]["metrics"].items()
        }
        assert ours == pytest.approx(expected, rel=1e-8), name


def ask_with(arguments: tuple[str, ...], layout: dict[str, int]) -> dict[str, Any]:
    return ask_harness(*arguments, **layout)  # type: ignore[arg-type]


def ask_ours(run: str, output: str, tasks: Path) -> dict[str, Any]:
    return evaluate(run, output, data=tasks, tasks=list(THEIR_TASKS))


def test_our_own_tasks_score_as_their_hugging_face_backend(
    places: dict[str, Path], theirs: dict[str, Any], tmp_path: Path
) -> None:
    found = run_distributed(ask_ours, 1, str(places["run"]), str(tmp_path), places["ours"])[0]["tasks"]
    for name, entry in theirs["results"].items():
        for key, value in entry.items():
            metric = key.removesuffix(",none")
            if metric not in found[name]["metrics"] or (name, metric) == ("asked", "exact_match"):
                continue
            assert found[name]["metrics"][metric]["value"] == pytest.approx(value, rel=1e-8), (name, metric)
    written = [json.loads(line)["answer"] for line in (tmp_path / "samples" / "asked.jsonl").open()]
    assert written == [sample[0] for sample in theirs["answers"]["asked"]]
    assert len({text for (text,) in written}) > 1
    assert len(DOCUMENTS[-1]["text"]) > 2 * CONTEXT  # documents of several windows are among them
