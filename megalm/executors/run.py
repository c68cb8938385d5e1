"""Runs the tasks of stages on datatrove's executors: processes of this machine, SLURM or Ray."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.utils.logging import logger

from megalm.errors import UserError
from megalm.executors.settings import ExecutorSettings, SlurmSettings
from megalm.executors.stage import Stage
from megalm.launch import available_cores
from megalm.tasks import Task, run_tasks

_SLURM_SECONDS = 60  # for an answer of the cluster


class LocalExecutor(LocalPipelineExecutor):
    """datatrove's local executor on a pool that survives what its own does not.

    Its own waits for ever when a worker is killed (out of memory), and leaves workers and a manager process behind
    when it is killed itself. Here a killed worker ends the build with an error, and workers end with their parent.
    """

    def run(self) -> None:  # type: ignore[override]
        """Run the tasks that are not marked as completed."""
        tasks = [Task(_run_rank, (self, rank), 1) for rank in self.get_incomplete_ranks()]
        if tasks:
            run_tasks(tasks, min(self.workers, len(tasks)), lambda size: None)


class SlurmExecutor(SlurmPipelineExecutor):
    """datatrove's SLURM executor, without options that were left empty."""

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        """The options of sbatch."""
        return {
            name: value
            for name, value in super().get_sbatch_args(max_array).items()
            if value or name == "requeue" or name in self._sbatch_args
        }

    def launch_merge_stats(self) -> None:
        """Submit nothing: the project adds up its counts itself."""


def run_local(stage: Stage, logs: Path, settings: ExecutorSettings) -> None:
    """Run the tasks of a stage on this machine; finished ones are not repeated."""
    workers = settings.workers or available_cores()
    LocalExecutor(pipeline=stage.pipeline, tasks=stage.tasks, workers=workers, logging_dir=str(logs)).run()


def run_ray(stage: Stage, logs: Path, settings: ExecutorSettings) -> None:
    """Run the tasks of a stage on a Ray cluster; finished ones are not repeated."""
    try:
        import ray
    except ImportError:
        raise UserError("executor.kind is ray, and Ray is not installed; pip install ray") from None
    from datatrove.executor import RayPipelineExecutor

    if not ray.is_initialized():
        ray.init(address=settings.ray.address)
    executor = RayPipelineExecutor(
        pipeline=stage.pipeline,
        tasks=stage.tasks,
        workers=settings.workers or -1,
        logging_dir=str(logs),
        cpus_per_task=settings.ray.cpus_per_task,
        mem_per_cpu_gb=settings.ray.mem_per_cpu_gb,
    )
    executor.run()
    if missing := executor.get_incomplete_ranks():
        raise RuntimeError(f"{len(missing)} of {stage.tasks} tasks failed on Ray; their logs are in {logs}")


def submit_slurm(
    stages: Sequence[tuple[Stage, Path]], settings: ExecutorSettings, record: Callable[[list[str]], object]
) -> None:
    """Submit each stage, with its directory of logs, as a job that waits for the one before.

    `record` is given the ids of the jobs so far after each submission. Where a job is refused, those before it are cancelled.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "executor.kind is slurm, and there is no sbatch here; run this on a login node of the cluster"
        )
    slurm = settings.slurm
    executor: SlurmExecutor | None = None
    jobs: list[str] = []
    for stage, logs in stages:
        executor = SlurmExecutor(
            pipeline=stage.pipeline,
            tasks=stage.tasks,
            workers=settings.workers or -1,
            logging_dir=str(logs),
            job_name=f"megalm-{stage.name}",
            depends=executor,
            **_slurm_options(slurm),
        )
        with _errors_of_programs() as errors:
            try:
                executor.launch_job()
            except subprocess.CalledProcessError:
                if jobs:
                    subprocess.run(["scancel", *jobs], timeout=_SLURM_SECONDS, check=False)
                raise UserError(
                    f"sbatch refused the job of stage {stage.name}: {_one_line(errors)}; "
                    "look at the settings executor.slurm"
                ) from None
        if executor.job_id != -1:
            jobs.append(str(executor.job_id))
            record(jobs)


def queued_slurm_jobs(jobs: Sequence[str]) -> list[str]:
    """Those of `jobs` that still wait or run, each with its state and what it waits for."""
    if not jobs or shutil.which("squeue") is None:
        return []
    command = ["squeue", "--noheader", "--format=%F %T %r"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_SLURM_SECONDS, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = " ".join(str(error.stderr or "no answer").split())
        raise UserError(
            f"squeue cannot say whether jobs {', '.join(jobs)} of this build still wait or run ({said}); try again later"
        ) from None
    found: dict[str, str] = {}
    for line in answer.stdout.splitlines():
        job, state, reason = line.split(maxsplit=2)
        found[job] = state.lower() if reason == "None" else f"{state.lower()}: {reason}"
    return [f"{job} ({found[job]})" for job in jobs if job in found]


def _slurm_options(slurm: SlurmSettings) -> dict[str, Any]:
    # Jobs find the interpreter's own programs even where no environment is activated.
    setup = slurm.setup or f'export PATH="{Path(sys.executable).parent}:$PATH"'
    return {
        "partition": slurm.partition,
        "time": slurm.time,
        "cpus_per_task": slurm.cpus_per_task,
        "mem_per_cpu_gb": slurm.mem_per_cpu_gb,
        "tasks_per_job": slurm.tasks_per_job,
        "max_array_size": slurm.max_array_size,
        "qos": slurm.qos,
        "env_command": setup,
        "sbatch_args": {"kill-on-invalid-dep": "yes", **slurm.sbatch},
    }


def refuse_queued(path: Path) -> None:
    """Raise UserError where jobs whose ids the file `path` holds still wait or run."""
    if path.exists() and (jobs := queued_slurm_jobs(json.loads(path.read_text(encoding="utf-8")))):
        raise UserError(
            f"SLURM jobs {', '.join(jobs)} of this build still wait or run; let them end, or scancel them"
        )


@contextlib.contextmanager
def _errors_of_programs() -> Iterator[IO[bytes]]:
    """Yield a file that takes what programs that are started in the block write to stderr."""
    with tempfile.TemporaryFile() as file:
        own = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield file
        finally:
            os.dup2(own, 2)
            os.close(own)


def _one_line(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode("utf-8", "replace").splitlines()
    return "; ".join(line.removeprefix("sbatch: ").removeprefix("error: ").strip() for line in lines)


def _run_rank(executor: LocalExecutor, rank: int) -> None:
    """Run one task; what it would print goes into a file beside its log."""
    folder = Path(executor.logging_dir.path) / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    name = folder / f"task_{rank:05d}.err"
    with open(name, "w", encoding="utf-8") as errors, contextlib.redirect_stderr(errors):
        try:
            executor._run_for_rank(rank, local_rank=1)
        finally:
            logger.remove()
    if not os.path.getsize(name):
        os.unlink(name)
