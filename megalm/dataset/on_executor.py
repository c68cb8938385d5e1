"""Runs the stages of a build on datatrove's executors; imported only where a build asks for one."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger

from megalm import atomic
from megalm.dataset.plan import Plan
from megalm.dataset.shuffle import arrangement_path
from megalm.dataset.sidecar import read_sidecar
from megalm.dataset.stages import (
    Record,
    begin_second_pass,
    finish,
    first_pass,
    missing,
    second_pass,
    share_of,
)
from megalm.executors.run import run_local, run_ray, submit_slurm
from megalm.executors.settings import ExecutorSettings
from megalm.executors.stage import Stage
from megalm.splits import SPLITS
from megalm.tasks import one_thread

MOST_TASKS = 1000  # where nobody says; what SLURM's arrays take unless set up otherwise


class BuildStage(PipelineStep):
    """A task's share of one stage of the build in `folder`."""

    type = "dataset"

    def __init__(self, name: str, folder: Path, prefix: Path) -> None:
        self.name = name
        super().__init__()
        self.folder, self.prefix = folder, prefix
        self.directory = os.getcwd()

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        """Do what is missing of the share of task `rank`; no documents come out."""
        os.chdir(self.directory)  # relative paths mean what they meant where the command was given
        plan = Plan.read(self.folder)
        if self.name == "arrange":
            begin_second_pass(plan, self.folder)
        elif self.name == "finish":
            finish(plan, self.folder, self.prefix)
        else:
            work = (first_pass if self.name == "tokenize" else second_pass)(plan, self.folder)
            with one_thread():
                for task in missing(share_of(work, rank, world_size)):
                    task.function(*task.arguments)
        return iter(())


def run_on_executor(
    plan: Plan, folder: Path, prefix: Path, settings: ExecutorSettings, tasks: int | None
) -> dict[str, Record]:
    """Do what is missing of the build as `tasks` tasks a pass; returns the records, nothing where SLURM is to do it."""
    logs = prefix.with_name(f"{prefix.name}.logs").absolute()
    _forget(plan, folder, logs)
    plan.begin_in(folder)
    count = min(tasks or MOST_TASKS, len(first_pass(plan, folder)))
    names = {"tokenize": count, "arrange": 1, "shuffle": count, "finish": 1}
    stages = [Stage(name, number, [BuildStage(name, folder, prefix)]) for name, number in names.items()]
    # What lies in the logs of a stage are the numbers of finished tasks, which mean nothing to another number of tasks.
    with_logs = [(stage, logs / f"{stage.name}-{stage.tasks}") for stage in stages]
    logger.remove()
    if settings.kind == "slurm":
        path = folder / "slurm.json"
        atomic.write_text(path, "[]")
        submit_slurm(with_logs, settings, lambda jobs: atomic.write_text(path, json.dumps(jobs)))
        return {}
    run = run_local if settings.kind == "local" else run_ray
    for stage, stage_logs in with_logs:
        run(stage, stage_logs, settings)
    records = {split: read_sidecar(f"{prefix}_{split}") for split in SPLITS}
    return {split: record for split, record in records.items() if record}


def _forget(plan: Plan, folder: Path, logs: Path) -> None:
    """Remove the marks of tasks whose work is not there: of another build, or of a second pass that begins again."""
    if not plan.begun_in(folder):
        shutil.rmtree(logs, ignore_errors=True)
    elif not arrangement_path(folder).exists():
        for path in logs.glob("*"):
            if not path.name.startswith("tokenize-"):
                shutil.rmtree(path)
