"""What is asked of SLURM by its own programs: from where jobs are submitted, and from within them."""

import os
import re
import shutil
import signal
import subprocess

from megalm.errors import UserError

_SECONDS = 60
Fields = dict[str, str]


def call(*command: str) -> str:
    """Run a program of SLURM and return what it prints; UserError with its own words where it fails."""
    if shutil.which(command[0]) is None:
        raise UserError(
            f"there is no {command[0]} here: run this on a login node of the cluster, or launch with --cluster local"
        )
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
            preexec_fn=_outlive_the_job,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{' '.join(command)}: SLURM does not answer in {_SECONDS} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise UserError(f"{' '.join(command)}: {said[-1]}")
    return done.stdout


def _outlive_the_job() -> None:
    """SLURM tells all of a job's processes to end, also the one by which the job has just asked for that and has more to say."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def show(*what: str) -> list[Fields]:
    """Records of `scontrol show`, each by the names of its fields."""
    lines = call("scontrol", "show", "--oneliner", *what).splitlines()
    return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines if "=" in line]


def own_job() -> str | None:
    """The number of the job in which this process runs, as `scontrol` takes it; None outside SLURM.

    A job of this machine may have been launched within an allocation of SLURM, which is not its own to stop or to requeue.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") == "local":
        return None
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")


def is_preempted(job: str) -> bool:
    """Whether SLURM has told this running job to make room for another."""
    return any(re.match(r"\d", record.get("PreemptTime", "")) for record in show("job", job))


def is_running(job: str) -> bool:
    """Whether nobody has ended this job yet: it is neither over, nor about to wait for another turn."""
    return all(record.get("JobState") == "RUNNING" for record in show("job", job))


def requeue(job: str, excluded: set[str]) -> None:
    """End what runs of a job and let it wait for its next turn, on other nodes than `excluded`; nothing where it is ending already.

    SLURM kills the job's processes, this one too after KillWait (30 s unless set otherwise); the exclusion, which only a waiting job
    can be given, follows at once.
    """
    record = next(iter(show("job", job)), {})
    if record.get("JobState") != "RUNNING":
        return
    try:
        call("scontrol", "requeue", job)
    except UserError:
        if is_running(job):
            raise
        return  # another node was faster
    if excluded:
        already = record.get("ExcNodeList", "").replace("(null)", "")
        names = ",".join(filter(None, [already, *sorted(excluded)]))
        call("scontrol", "update", f"JobId={job}", f"ExcNodeList={names}")
