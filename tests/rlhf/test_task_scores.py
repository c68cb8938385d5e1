"""Tasks asked while a policy learns: scores of its checkpoints, on any ranks, unnoticed by the learning."""

import json
from pathlib import Path

import pytest

from megalm.run_files import TASKS
from megalm.testing import run_distributed
from tests.evaluate.small import evaluate, write_tasks
from tests.rlhf.runs import learn_in_world, make_base, rl_config, step_lines

SMALL = ("train.steps=2", "train.eval_interval=2", "precision.dtype=fp64")


def test_a_policys_scores_are_those_of_its_checkpoint(tmp_path: Path) -> None:
    base = make_base(tmp_path)
    tasks = str(write_tasks(tmp_path / "tasks"))
    asking = ("evaluate.tasks=[choices, asked]", f"evaluate.task_folder={tasks}", f"evaluate.data={tasks}")
    learn_in_world(1, rl_config(tmp_path / "without", base, "grpo", *SMALL))
    result = learn_in_world(1, rl_config(tmp_path / "with", base, "grpo", *SMALL, *asking))
    assert step_lines(tmp_path / "with") == step_lines(tmp_path / "without")
    split = rl_config(
        tmp_path / "split", base, "grpo", *SMALL, *asking, "parallel.tensor_model_parallel_size=2"
    )
    learn_in_world(2, split)
    (found,) = run_distributed(scores_of_checkpoint, 1, tmp_path / "with", tmp_path / "out", tasks)
    for run in ("with", "split"):
        (line,) = [json.loads(text) for text in (tmp_path / run / TASKS).read_text().splitlines()]
        assert line["step"] == 2
        for label in ("choices", "asked"):
            for name, score in found[label].items():
                assert line["tasks"][label]["metrics"][name]["value"] == pytest.approx(score, rel=1e-6)
    assert result["valid_choices_acc"] == found["choices"]["acc"]


def scores_of_checkpoint(run: Path, output: Path, tasks: str) -> dict[str, dict[str, float]]:
    found = evaluate(str(run), str(output), data=tasks, tasks=["choices", "asked"])
    return {
        label: {name: score["value"] for name, score in entry["metrics"].items()}
        for label, entry in found["tasks"].items()
    }
