"""Tasks asked in training: scores of `megalm eval`, the same under every layout, unnoticed by the training, followed by the best checkpoint."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from megalm.checkpoint.directory import find_checkpoint, list_checkpoints
from megalm.config import Config, parse_config
from megalm.dataset import build_dataset
from megalm.errors import UserError
from megalm.run_files import TASKS as FILE_NAME
from megalm.testing import run_distributed
from megalm.tokenizer import train_bpe
from megalm.train.callbacks.metrics import MetricsFile, read_metrics
from megalm.train.callbacks.task_scores import open_tasks
from tests.evaluate.safe import write_safe_tasks
from tests.evaluate.small import evaluate, write_tasks
from tests.train.runs import PP2, TP2, step_lines, train_in_world, validation_losses

NAMES = ["choices", "last_words", "asked", "documents"]
SPECIAL = ["<|im_start|>", "<|im_end|>"]
BEST = ("checkpoint.keep_best={metric: choices_probability, mode: max}", "checkpoint.keep_last=1")


@pytest.fixture(scope="module")
def text_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, token files, and tasks."""
    directory: Path = tmp_path_factory.mktemp("text")
    texts = [
        f"the {word} of the end and the text of the hand {n}" for n in range(80) for word in ("end", "no")
    ]
    (directory / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train_bpe([directory / "text.jsonl"], 290, directory / "tokenizer", special_tokens=SPECIAL)
    build_dataset(
        [directory / "text.jsonl"], directory / "tokenizer", directory / "data", workers=1, splits="80,20,0"
    )
    tasks = write_tasks(directory / "tasks")
    members = [{"task": "choices", "metric": "acc_tokens"}, {"task": "schemas"}]
    (tasks / "mean.yaml").write_text(yaml.safe_dump({"name": "mean", "average": members}))
    return directory


def asked(directory: Path, data: Path, *overrides: str, tasks: list[str] | None = None) -> Config:
    """A run with large random weights, so that scores vary, and dropout, whose draws must not be disturbed."""
    folder = str(data / "tasks")
    sections = {
        "run": {"dir": str(directory)},
        "model": {
            "preset": "llama-tiny",
            "max_sequence_length": 48,
            "init_method_std": 0.2,
            "hidden_dropout": 0.1,
        },
        "tokenizer": {"path": str(data / "tokenizer")},
        "data": {
            "train": [{"path": str(data / "data_train")}],
            "valid": [{"path": str(data / "data_valid")}],
        },
        "batch": {"seq_length": 32, "micro_batch_size": 2, "global_batch_size": 4},
        "optimizer": {"lr": 1e-2, "min_lr": 1e-3},
        "train": {"steps": 4, "eval_interval": 2, "eval_batches": 1},
        "evaluate": {
            "tasks": [*NAMES, "mean"] if tasks is None else tasks,
            "task_folder": folder,
            "data": folder,
            "batch_size": 5,
        },
        "checkpoint": {"interval": 2},
        "precision": {"dtype": "fp64"},
        "logging": {"tensorboard": False, "progress": False, "plot": False},
    }
    return parse_config(sections, overrides)


def task_figures(directory: Path) -> list[dict[str, float]]:
    """Of each validation what the tasks scored, by the names of metrics.jsonl."""
    own = ("valid_loss", "valid_perplexity")
    lines = [line for line in read_metrics(directory / "metrics.jsonl") if "valid_loss" in line]
    return [{k: v for k, v in line.items() if k.startswith("valid_") and k not in own} for line in lines]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory, text_data: Path) -> Path:
    directory: Path = tmp_path_factory.mktemp("one")
    train_in_world(1, asked(directory, text_data, "model.hidden_dropout=0", *BEST, "checkpoint.keep_every=2"))
    return directory


def test_training_is_bit_identical_with_and_without_tasks(tmp_path: Path, text_data: Path) -> None:
    train_in_world(1, asked(tmp_path / "with", text_data))
    train_in_world(1, asked(tmp_path / "without", text_data, "evaluate.tasks=[]"))
    assert step_lines(tmp_path / "with") == step_lines(tmp_path / "without")
    assert validation_losses(tmp_path / "with") == validation_losses(tmp_path / "without")
    assert not (tmp_path / "without" / FILE_NAME).exists()


def test_scores_are_those_of_megalm_eval_on_the_saved_checkpoints(
    tmp_path: Path, text_data: Path, one_process: Path
) -> None:
    lines = [json.loads(line) for line in (one_process / FILE_NAME).read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    for line, figures in zip(lines, task_figures(one_process), strict=True):
        changes = {"data": str(text_data / "tasks"), "tasks": [*NAMES, "mean"], "step": line["step"]}
        (found,) = run_distributed(evaluated, 1, one_process, tmp_path / str(line["step"]), changes)
        expected = {
            f"valid_{label}_{name}": score["value"]
            for label, entry in found["tasks"].items()
            for name, score in entry["metrics"].items()
        }
        expected["valid_mean"] = found["averages"]["mean"]["value"]
        assert figures == pytest.approx(expected, rel=1e-9)
        assert line["tasks"]["choices"]["metrics"]["acc"] == found["tasks"]["choices"]["metrics"]["acc"]
        assert line["averages"].keys() == {"mean"}
    first, last = task_figures(one_process)
    assert first["valid_documents_perplexity"] > last["valid_documents_perplexity"]


def test_tasks_that_are_judged_or_have_parts_are_asked_too(tmp_path: Path, text_data: Path) -> None:
    folder = write_safe_tasks(tmp_path / "tasks")
    places = (f"evaluate.task_folder={folder}", f"evaluate.data={folder}")
    train_in_world(1, asked(tmp_path / "run", text_data, *places, tasks=["refused", "people"]))
    refusals = ("refused", "refused_harmful", "refused_safe", "balanced")
    parts = ("acc_pro", "acc_anti", "acc_gap", "changed")
    names = {f"valid_refused_{name}" for name in refusals} | {f"valid_people_{name}" for name in parts}
    assert [set(figures) for figures in task_figures(tmp_path / "run")] == [names, names]


def evaluated(run: Path, output: Path, changes: dict[str, Any]) -> dict[str, Any]:
    return evaluate(str(run), str(output), **changes)


@pytest.mark.parametrize(
    ("world", "overrides"),
    [
        (2, [TP2, "parallel.sequence_parallel=true"]),
        (2, [PP2]),
        (2, []),
        (2, ["parallel.context_parallel_size=2"]),
        (4, [TP2, PP2, "parallel.sequence_parallel=true"]),
    ],
    ids=["TP2+SP", "PP2", "DP2", "CP2", "TP2xPP2+SP"],
)
def test_scores_are_those_of_one_process(
    tmp_path: Path, text_data: Path, one_process: Path, world: int, overrides: list[str]
) -> None:
    train_in_world(world, asked(tmp_path, text_data, "model.hidden_dropout=0", *overrides))
    for found, expected in zip(task_figures(tmp_path), task_figures(one_process), strict=True):
        assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "overrides",
    [
        ["parallel.zero_stage=1", "parallel.overlap_param_gather=true"],
        ["engine=deepspeed", "parallel.zero_stage=2"],
    ],
    ids=["ZeRO-1, overlapped", "ZeRO-2"],
)
def test_sharded_optimizers_are_asked_with_the_weights_of_the_step(
    tmp_path: Path, text_data: Path, overrides: list[str]
) -> None:
    small = ["precision.dtype=fp32", "model.hidden_dropout=0", "train.steps=2"]
    train_in_world(1, asked(tmp_path / "one", text_data, *small, tasks=["documents"]))
    train_in_world(2, asked(tmp_path / "two", text_data, *small, *overrides, tasks=["documents"]))
    (expected,), (found,) = task_figures(tmp_path / "one"), task_figures(tmp_path / "two")
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_best_checkpoint_by_a_score_is_kept_and_found(tmp_path: Path, text_data: Path) -> None:
    more = ["train.steps=6", "train.eval_interval=1", "checkpoint.interval=1", "model.hidden_dropout=0"]
    result = train_in_world(1, asked(tmp_path, text_data, *BEST, *more, tasks=["choices"]))
    scores = [figures["valid_choices_probability"] for figures in task_figures(tmp_path)]
    best = scores.index(max(scores)) + 1
    assert (result["best_step"], result["best_choices_probability"]) == (best, max(scores))
    assert set(list_checkpoints(tmp_path)) == {best, 6}
    assert find_checkpoint(tmp_path, "best").name == f"step_{best:08d}"


def test_tasks_are_asked_at_every_so_many_th_validation_and_the_last(tmp_path: Path, text_data: Path) -> None:
    more = ["train.steps=5", "train.eval_interval=1", "evaluate.every=2", "evaluate.limit=3"]
    train_in_world(1, asked(tmp_path, text_data, *more, tasks=["choices"]))
    lines = [json.loads(line) for line in (tmp_path / FILE_NAME).read_text().splitlines()]
    assert [(line["step"], line["tasks"]["choices"]["questions"]) for line in lines] == [
        (2, 3),
        (4, 3),
        (5, 3),
    ]
    assert [bool(figures) for figures in task_figures(tmp_path)] == [False, True, False, True, True]


def test_a_resumed_run_has_each_step_once(tmp_path: Path, text_data: Path) -> None:
    every = ["train.eval_interval=1", "train.steps=3"]
    train_in_world(1, asked(tmp_path / "whole", text_data, *every, tasks=["choices"]))
    train_in_world(
        1, asked(tmp_path / "parted", text_data, *every, "train.exit_after_steps=2", tasks=["choices"])
    )
    with open(tmp_path / "parted" / FILE_NAME, "a") as file:
        file.write('{"step": 3, "tasks": {}}\n{"step": 3, "ta')  # left by a kill
    train_in_world(1, asked(tmp_path / "parted", text_data, *every, tasks=["choices"]))
    assert (tmp_path / "parted" / FILE_NAME).read_text() == (tmp_path / "whole" / FILE_NAME).read_text()


def train_with_tensorboard(config: Config) -> None:
    from megalm.train import run
    from megalm.train.callbacks.tensorboard import TensorBoard

    with mock.patch.object(run, "standard_callbacks", lambda _: [MetricsFile(), TensorBoard()]):
        run.main(config)


def test_scores_are_scalars_of_tensorboard(tmp_path: Path, text_data: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_distributed(train_with_tensorboard, 1, asked(tmp_path, text_data, tasks=["choices"]))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(one.step, one.value) for one in events.Scalars("valid/choices_acc")]
    expected = [figures["valid_choices_acc"] for figures in task_figures(tmp_path)]
    assert found == [(2, pytest.approx(expected[0])), (4, pytest.approx(expected[1]))]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.eval_interval=0"], "evaluate.tasks are asked at validations"),
        (["tokenizer.path=null"], "name the tokenizer"),
        (["evaluate.chat_template=chatml"], "set evaluate.chat"),
        (["engine=deepspeed", "precision.dtype=fp32", "parallel.zero_stage=3"], "zero_stage 3"),
        (
            ["model.preset=mixtral-tiny", "parallel.expert_model_parallel_size=2"],
            "expert_model_parallel_size 2",
        ),
        (["model.preset=bert-tiny", "task=mlm"], "predicts no text"),
        (["evaluate.every=0"], "evaluate.every"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    tmp_path: Path, text_data: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        asked(tmp_path, text_data, *overrides)


@pytest.mark.parametrize(
    ("overrides", "tasks", "message"),
    [
        ([], ["choises"], "did you mean 'choices'"),
        (
            ["evaluate.every=2", *BEST[:1]],
            ["choices"],
            "choices_probability is measured at every validation number 2",
        ),
        (
            ["evaluate.every=2", "checkpoint.keep_best={metric: mean, mode: max}"],
            ["mean"],
            "mean is measured at every validation number 2",
        ),
        (["evaluate.few_shot=99"], ["choices"], "lower it"),
    ],
)
def test_what_the_tasks_do_not_give_is_refused_before_the_run(
    tmp_path: Path, text_data: Path, overrides: list[str], tasks: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        open_tasks(asked(tmp_path, text_data, *overrides, tasks=tasks))
