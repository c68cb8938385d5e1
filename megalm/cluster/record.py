"""The jobs of a run that were submitted, a JSON line each in RUN/cluster/jobs.jsonl."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megalm.errors import UserError

FOLDER = "cluster"
"""In the run directory: the configuration as it was submitted, jobs.jsonl, events.jsonl; submitit's files and logs, but those of a sweep."""
JOBS = "jobs.jsonl"


@dataclass(frozen=True)
class Job:
    """A job that was submitted.

    id: SLURM's number, or that of the local process that follows the ranks. logs: folder of its output. command: of a job that trains
    nothing. directory: from which paths count. host: where it was submitted.
    """

    id: str
    kind: str
    time: str
    logs: str
    directory: str
    settings: dict[str, Any]
    command: str | None = None
    host: str | None = None


def folder_of(run_directory: str | Path) -> Path:
    """Where a run's jobs leave their files."""
    return Path(run_directory) / FOLDER


def log_path(job: Job, node: int) -> Path:
    """Where submitit has a node's output written."""
    return Path(job.logs) / f"{job.id}_{node}_log.out"


def add_job(run_directory: Path, job: Job) -> None:
    """Remember a job that has been submitted."""
    with open(folder_of(run_directory) / JOBS, "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(job)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def jobs_of(run_directory: str | Path) -> list[Job]:
    """All jobs of a run that were submitted, oldest first; UserError where the file is damaged."""
    path = folder_of(run_directory) / JOBS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    jobs = []
    for number, line in enumerate(lines, 1):
        try:
            jobs.append(Job(**json.loads(line)))
        except (ValueError, TypeError):
            raise UserError(f"{path}, line {number}: no record of a job; delete the line") from None
    return jobs
