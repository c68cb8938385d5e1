"""What became of a run and of its jobs."""

import contextlib
import json
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megalm.checkpoint.directory import list_checkpoints
from megalm.cluster import slurm
from megalm.cluster.events import ENDED, EXCLUDED, FAILED, STARTED, STOPPED, events_of, failed_starts
from megalm.cluster.record import FOLDER, JOBS, Job, folder_of, jobs_of
from megalm.config import load_config
from megalm.errors import UserError
from megalm.run_files import CONFIG, LINEAGE, METRICS

_ENDED = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "STOPPED"),
    *("BOOT_FAIL", "DEADLINE", "REVOKED"),
)


@dataclass(frozen=True)
class RunState:
    """step: the last one in metrics.jsonl. seconds_left: at the speed of the last steps. job_state: SLURM's word, of the newest job.

    starts, failures: of that job; last_failure: which rank of which node, and how.
    """

    directory: str
    task: str
    step: int
    steps: int | None
    loss: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    checkpoint: int | None
    seconds_since: float | None
    job: str | None
    job_state: str | None
    starts: int = 0
    failures: int = 0
    last_failure: str | None = None
    excluded: str | None = None
    why: str | None = None


def find_runs(folders: list[Path], depth: int = 3) -> list[Path]:
    """Run directories in these folders, or a few levels below, by name."""
    found: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such directory; name one with runs")
        pattern = ""
        for _ in range(depth + 1):
            for config in folder.glob(f"{pattern}{CONFIG}"):
                if (config.parent / METRICS).exists() or (config.parent / LINEAGE).exists():
                    found.add(config.parent)
            found |= {jobs.parent.parent for jobs in folder.glob(f"{pattern}{FOLDER}/{JOBS}")}
            pattern += "*/"
    return sorted(found)


def state_of(directory: Path) -> RunState:
    """What is known of a run, or of a command that was launched. UserError where the directory holds neither."""
    jobs = jobs_of(directory)
    job = jobs[-1] if jobs else None
    places = (directory / CONFIG, folder_of(directory) / CONFIG)
    config = next((load_config(path) for path in places if path.exists()), None)
    if config is None and job is None:
        raise UserError(f"{directory} holds no run ({CONFIG}); name a run directory")
    lines = last_metrics(directory / METRICS)
    steps = [line for line in lines if "loss" in line and "step" in line]
    last = steps[-1] if steps else {}
    speeds = [line["tokens_per_second"] for line in steps[-10:] if "tokens_per_second" in line]
    checkpoints = list_checkpoints(directory)
    step, rate = int(last.get("step", 0)), _steps_per_second(steps)
    wanted = config.train.steps if config else None
    return RunState(
        directory=str(directory),
        task=config.task if config else "command",
        step=step,
        steps=wanted,
        loss=last.get("loss"),
        tokens_per_second=sum(speeds) / len(speeds) if speeds else None,
        seconds_left=(wanted - step) / rate if rate and wanted else None,
        checkpoint=max(checkpoints) if checkpoints else None,
        seconds_since=time.time() - (directory / METRICS).stat().st_mtime if lines else None,
        job=job.id if job else None,
        **(_of_job(directory, job) if job else {"job_state": None}),
    )


def _of_job(directory: Path, job: Job) -> dict[str, Any]:
    events = list(events_of(folder_of(directory), job.id))
    failures = [event for event in events if event["event"] == FAILED]
    excluded = sorted({event["host"] for event in events if event["event"] == EXCLUDED})
    return {
        "job_state": job_state(directory, job),
        "starts": sum(event["event"] == STARTED for event in events),
        "failures": len(failed_starts(events)),
        "last_failure": _failure(failures[-1]) if failures else None,
        "excluded": ", ".join(excluded) or None,
        "why": _why(events[-1]) if events else None,
    }


def _why(last: dict[str, Any]) -> str | None:
    failed = last["event"] == ENDED and last.get("code")
    return last.get("why") or (
        f"exit code {last['code']}: megalm runs logs shows its output" if failed else None
    )


def last_metrics(path: Path, size: int = 1 << 16) -> list[dict[str, Any]]:
    """The last lines of metrics.jsonl, without one that is being written."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _steps_per_second(steps: list[dict[str, Any]]) -> float | None:
    timed = [line for line in steps[-10:] if line.get("step_seconds")]
    if timed:
        return len(timed) / sum(line["step_seconds"] for line in timed)
    phases = [sum(value for name, value in line.items() if name.endswith("_seconds")) for line in steps[-10:]]
    return len(phases) / sum(phases) if phases and sum(phases) else None


def _failure(event: dict[str, Any]) -> str:
    who = "" if event["rank"] is None else f"rank {event['rank']} on {event['host']}, "
    return f"{who}last saved step {event['step']}: {event['how']}"


def job_state(directory: Path, job: Job) -> str:
    """SLURM's word for the state of a run's job (RUNNING, PENDING with its reason, COMPLETED, ...), and STOPPED after `stop_job`."""
    last: dict[str, Any] = next(reversed(list(events_of(folder_of(directory), job.id))), {})
    if job.kind == "local":
        return _local_state(job, last)
    try:
        found = slurm.show("job", job.id)
    except UserError as error:
        state = _accounted(job)
        is_forgotten = "Invalid job id" in str(error)
        return _state_of_ended(last) if state == "UNKNOWN" and is_forgotten else state
    record = found[0] if found else {}
    state, reason = record.get("JobState", "UNKNOWN"), record.get("Reason", "None")
    if state == "FAILED" and last.get("event") == STOPPED:
        return STOPPED.upper()
    return f"{state} ({reason})" if state == "PENDING" and reason != "None" else state


def _local_state(job: Job, last: dict[str, Any]) -> str:
    """By the run's last event: several runs of a process take turns."""
    event = last.get("event")
    if event not in (STOPPED, ENDED):
        if _is_elsewhere(job):
            return f"UNKNOWN (of {job.host})"
        if _is_alive(job):
            return "RUNNING" if event else "PENDING"
    return _state_of_ended(last)


def _state_of_ended(last: dict[str, Any]) -> str:
    """Of a job that is over, by the last that it told."""
    event = last.get("event")
    if event == STOPPED:
        return STOPPED.upper()
    if event == ENDED:
        return "FAILED" if last.get("code") else "COMPLETED"
    return "FAILED" if event else "CANCELLED"


def _accounted(job: Job) -> str:
    """What accounting says of a job that the controller has forgotten."""
    wanted = ["--noheader", "--parsable2", "--allocations", "--format=State", "-j", job.id]
    try:
        said = slurm.call("sacct", *wanted).split()
    except UserError:
        return "UNKNOWN"
    return said[0] if said else "UNKNOWN"


def is_over(state: str) -> bool:
    """Whether a job in this state will not run any more."""
    return state.startswith(_ENDED)


def stop_job(directory: Path, job: Job, at_once: bool) -> None:
    """Tell a job to save and end; or, at_once or where it still waits, cancel it."""
    if job.kind == "local":
        if _is_elsewhere(job):
            raise UserError(f"job {job.id} runs on {job.host}: give the command there")
        if _is_alive(job):
            if at_once:
                _kill_all(int(job.id))
            else:
                _tell_process(int(job.id), signal.SIGTERM)
        return
    waits = job_state(directory, job).startswith("PENDING")
    slurm.call("scancel", *([] if at_once or waits else ["--signal=TERM"]), job.id)


def _is_elsewhere(job: Job) -> bool:
    """Whether a local job is one of another machine that sees the same files."""
    return job.host not in (None, socket.gethostname())


def _is_alive(job: Job) -> bool:
    """Whether the process is there, and no other one that was given its number since."""
    try:
        words = Path(f"/proc/{job.id}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"submitit.local._local" in words and job.logs.encode() in words


def _kill_all(process: int) -> None:
    """Kill a process and all that it began. All are halted before: none goes on, as a shell does, when one that it waits for ends."""
    halted: list[int] = []
    while new := [each for each in (process, *_below(process)) if each not in halted]:
        for each in new:
            _tell_process(each, signal.SIGSTOP)
        halted += new
    for each in halted:
        _tell_process(each, signal.SIGKILL)


def _tell_process(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def _below(process: int) -> list[int]:
    """What a process of this machine has started, and what that has, and so on."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [found for child in map(int, children) for found in (*_below(child), child)]
