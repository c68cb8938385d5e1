"""Hands runs and commands to SLURM, or to processes of this machine, and keeps a record of it in their directories."""

import contextlib
import io
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megalm.cluster.command import Chain, CommandJob
from megalm.cluster.detached import submit_detached
from megalm.cluster.jobs import TrainJob
from megalm.cluster.record import Job, add_job, folder_of
from megalm.cluster.settings import ClusterSettings
from megalm.config import Config, dump_config
from megalm.errors import UserError
from megalm.lineage.record import now
from megalm.run_files import CONFIG


@dataclass(frozen=True)
class Work:
    """What one job does: trains as `config` says, or runs `command`; its files lie in `directory`.

    needs: numbers of the works, submitted with this one, that must have ended well before it starts.
    """

    directory: Path
    settings: ClusterSettings
    config: Config | None = None
    command: str | None = None
    needs: list[int] = field(default_factory=list)


def script_of(work: Work, needed: Sequence[str] = (), folder: Path | None = None, runs: int = 1) -> str:
    """The script that sbatch would get; needed: names that stand for the jobs it waits for; folder, runs: of a sweep."""
    from submitit.slurm.slurm import _make_sbatch_string

    folder = folder or folder_of(work.directory.absolute())
    parameters = _slurm_parameters(work, folder, needed)
    command = f"{_python(work.settings)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    array = runs if runs > 1 else None
    return _make_sbatch_string(command=command, folder=folder, map_count=array, **parameters)


def submit_each(works: Sequence[Work]) -> list[Job]:
    """Submit works that may need each other, as they are now: later changes of their files play no part.

    Raises UserError where the cluster refuses one; those submitted before it are cancelled.
    """
    if works[0].settings.kind == "local":
        return _submit_chain(works)
    made: list[Job] = []
    for work in works:
        executor = _slurm_executor(work, folder_of(work.directory), [made[need].id for need in work.needs])
        try:
            [job] = _submit(executor, [work])
        except UserError:
            if made:
                subprocess.run(["scancel", *(job.id for job in made)], check=False)
            raise
        made.append(job)
    return made


def submit_sweep(works: Sequence[Work], folder: Path) -> list[Job]:
    """Submit works of equal settings as one array, whose files lie in `folder`."""
    if works[0].settings.kind == "local":
        return _submit_chain(works, folder)
    return _submit(_slurm_executor(works[0], folder, []), works)


def _submit(executor: Any, works: Sequence[Work]) -> list[Job]:
    import submitit

    tasks = [_task_of(work) for work in works]
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit shows all that sbatch says
            if len(tasks) == 1:
                made = [executor.submit(tasks[0])]
            else:
                with executor.batch():
                    made = [executor.submit(task) for task in tasks]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        raise UserError(f"sbatch refused the job: {_words_of(str(error))}") from None
    return _record(works, [job.job_id for job in made], Path(executor.folder))


def _words_of(said: str) -> str:
    """The line that says why, of what sbatch has printed."""
    lines = said.strip().splitlines()
    errors = [line for line in lines if "error:" in line or "unrecognized" in line or "invalid" in line]
    why = errors[-1] if errors else (lines or ["no word why"])[0]
    return why.removeprefix("sbatch: ").removeprefix("error: ")


def _submit_chain(works: Sequence[Work], folder: Path | None = None) -> list[Job]:
    """One process of this machine runs them in turn."""
    settings = works[0].settings
    parameters = {
        "timeout_min": sum(work.settings.minutes for work in works),
        "signal_delay_s": settings.save_seconds,
        "tasks_per_node": 1,
        "nodes": 1,
        "gpus_per_node": max(work.settings.gpus_per_node for work in works),
        "visible_gpus": _visible_gpus(),
        "stderr_to_stdout": True,
    }
    # Left to submitit, a shell that runs the lines would stand between the job and the signals sent to it.
    lines = "\n".join([*settings.setup, f'exec {_python(settings)} "$@"'])
    python = shlex.join(["bash", "-c", lines, "megalm"])
    chain = Chain([_task_of(work) for work in works], [work.needs for work in works])
    logs = (folder or folder_of(works[0].directory)).absolute()
    return _record(works, [submit_detached(logs, parameters, python, chain)] * len(works), logs)


def _visible_gpus() -> tuple[int, ...]:
    """Those of this machine that the user has been given, by their numbers; none: all."""
    numbers = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return tuple(map(int, numbers)) if all(number.isdigit() for number in numbers) else ()


def _record(works: Sequence[Work], numbers: Sequence[str], logs: Path) -> list[Job]:
    made = []
    for work, number in zip(works, numbers, strict=True):
        settings = work.settings
        here, host = os.getcwd(), socket.gethostname()
        job = Job(number, settings.kind, now(), str(logs), here, settings.model_dump(), work.command, host)
        add_job(work.directory, job)
        made.append(job)
    return made


def _task_of(work: Work) -> TrainJob | CommandJob:
    """What the nodes will call, with its folder made ready."""
    settings, folder = work.settings, folder_of(work.directory.absolute())
    folder.mkdir(parents=True, exist_ok=True)
    if work.config is None:
        assert work.command is not None
        return CommandJob(work.command, str(folder), os.getcwd(), settings.env)
    run = work.config.run.model_copy(update={"dir": str(work.directory.absolute())})
    dump_config(work.config.model_copy(update={"run": run}), folder / CONFIG)
    return TrainJob(
        str(folder),
        os.getcwd(),
        settings.processes,
        settings.min_nodes is not None,
        settings.max_restarts,
        settings.env,
    )


def _slurm_executor(work: Work, folder: Path, needed: Sequence[str]) -> Any:
    import submitit

    try:
        executor = submitit.SlurmExecutor(folder=folder.absolute(), python=_python(work.settings))
    except RuntimeError:
        raise UserError(
            "there is no SLURM (srun) here; run this on a login node of the cluster, or give --cluster local"
        ) from None
    executor.update_parameters(**_slurm_parameters(work, folder, needed))
    return executor


def _python(settings: ClusterSettings) -> str:
    python = settings.python or ("python3" if settings.container else sys.executable)
    if settings.container and settings.container_runtime == "apptainer":
        binds = [part for mount in settings.container_mounts for part in ("--bind", mount)]
        gpus = ["--nv"] if settings.gpus_per_node else []
        return shlex.join(["apptainer", "exec", *gpus, *binds, settings.container, python])
    return shlex.quote(python)


def _slurm_parameters(work: Work, folder: Path, needed: Sequence[str]) -> dict[str, Any]:
    """As submitit names them; what is not set is left to the cluster."""
    settings = work.settings
    srun = ["--kill-on-bad-exit=1"]
    if settings.cpus_per_node:
        # Since SLURM 22.05 srun does not learn it from sbatch, and may bind a task to a single core.
        srun.append(f"--cpus-per-task={settings.cpus_per_node}")
    if settings.container and settings.container_runtime == "pyxis":
        srun.append(f"--container-image={settings.container}")
        if settings.container_mounts:
            srun.append(f"--container-mounts={','.join(settings.container_mounts)}")
    more: dict[str, Any] = {"requeue": True}
    elastic = settings.min_nodes is not None
    if elastic:  # told how many tasks there are on a node, SLURM would give as few nodes as it may
        more["nodes"] = f"{settings.min_nodes}-{settings.nodes}"
        srun.append("--ntasks-per-node=1")
    if needed:
        more["kill-on-invalid-dep"] = "yes"  # what needs a job that has failed would wait for ever
    wanted = {
        "job_name": f"megalm-{folder.parent.name}",
        "nodes": settings.nodes,
        "ntasks_per_node": None if elastic else 1,
        "gpus_per_node": settings.gpus_per_node or None,
        "cpus_per_task": settings.cpus_per_node,
        "mem": f"{round(settings.mem_gb * 1000)}M" if settings.mem_gb else None,
        "time": settings.minutes,
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "exclude": settings.exclude,
        "setup": settings.setup or None,
        "dependency": f"afterok:{':'.join(needed)}" if needed else None,
        "array_parallelism": settings.at_once,
        "signal_delay_s": settings.save_seconds,
        "stderr_to_stdout": True,
        "srun_args": srun,
        "additional_parameters": more
        | {key.replace("-", "_"): value for key, value in settings.sbatch.items()},
    }
    return {name: value for name, value in wanted.items() if value is not None}
