"""Run directories written by hand."""

import json
from pathlib import Path
from typing import Any

import yaml

from megalm.config import parse_config


def step_line(step: int, **figures: Any) -> dict[str, Any]:
    """A line of metrics.jsonl as a step of task pretrain has it."""
    line = {"step": step, "loss": 10 / step, "grad_norm": 1.0, "lr": 1e-3, "tokens": 64 * step}
    return line | {"weight": 60.0, "skipped": False} | figures


def start_line(**facts: Any) -> dict[str, Any]:
    """What every run begins its metrics with."""
    layout = {"engine": "megatron", "layout": "TP1 x PP1 x DP1", "world_size": 1}
    return {"step": 0, "event": "start"} | layout | facts


def lines_of(*lines: dict[str, Any]) -> str:
    """As JSON lines."""
    return "".join(json.dumps(line) + "\n" for line in lines)


def write_run(
    directory: Path, *lines: dict[str, Any], config: dict[str, Any] | None = None, **files: str
) -> Path:
    """A run with these metrics; `files` by name, `rollouts` for rollouts.jsonl, `lineage` for lineage.json."""
    directory.mkdir(parents=True, exist_ok=True)
    sections = {"run": {"dir": str(directory)}, "model": {"vocab_size": 100, "num_layers": 2}} | (
        config or {}
    )
    resolved = parse_config(sections).model_dump()
    (directory / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
    (directory / "metrics.jsonl").write_text(lines_of(*lines))
    (directory / "lineage.json").write_text("{}")
    for name, text in files.items():
        suffix = "jsonl" if name in ("rollouts", "samples", "metrics") else "json"
        (directory / f"{name}.{suffix}").write_text(text, encoding="utf-8")
    return directory


def write_evaluation(
    folder: Path, right: dict[str, list[float]], chance: float | None = None, **entry: Any
) -> Path:
    """What `megalm eval` writes of tasks whose questions scored `right`."""
    from megalm.evaluate.bootstrap import ratio_score
    from megalm.evaluate.files import FILE_NAME, write_draws

    folder.mkdir(parents=True)
    tasks = {}
    for name, values in right.items():
        score = ratio_score(values, [1.0] * len(values), 7)
        counts = {"questions": len(values), "questions_hash": str(len(values)), "seed": 7}
        tasks[name] = {"main": "acc", "chance": chance, "metrics": {"acc": score.told()}} | counts | entry
        write_draws(folder, name, {"acc": score})
    results = {"model": {"dtype": "fp32"}, "tasks": tasks, "averages": {}}
    (folder / FILE_NAME).write_text(json.dumps(results))
    return folder
