"""Jobs that are not one training run: a shell command, and several jobs one after the other on this machine."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from megalm.cluster import slurm
from megalm.cluster.events import ENDED, QUEUED, STARTED, STOPPED, events_of, tell
from megalm.cluster.jobs import (
    STARTS_WITHOUT_PROGRESS,
    STOP_CODE,
    TIME_LIMIT_SIGNAL,
    TrainJob,
    await_the_end,
    job_id,
)

_LATE = "time limit"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@dataclass
class CommandJob:
    """Runs one line of shell. It is told to end (SIGTERM) at a time limit and at preemption, and then run again from its beginning."""

    command: str
    folder: str
    directory: str
    env: dict[str, str] = field(default_factory=dict)

    def __call__(self) -> int:
        """Return 0 where the command has; SystemExit with its exit code."""
        job, folder = job_id(), Path(self.folder)
        tell(folder, job, STARTED)
        received: set[int] = set()
        process: subprocess.Popen[bytes] | None = None

        def forward(number: int, _: FrameType | None) -> None:
            if not received and process is not None:
                os.killpg(process.pid, signal.SIGTERM)
            received.add(number)

        before = {number: signal.signal(number, forward) for number in _SIGNALS}
        # where PATH has no `megalm`, it is the one that submitted
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), os.path.dirname(sys.executable)])
        process = subprocess.Popen(
            ["bash", "-c", self.command],
            cwd=self.directory,
            env=os.environ | {"PATH": path} | self.env,
            start_new_session=True,
        )
        if received:  # before there was a process to tell
            os.killpg(process.pid, signal.SIGTERM)
        code = process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
        if code and received:
            own, is_late = slurm.own_job(), TIME_LIMIT_SIGNAL in received
            if own is not None and is_late and self._was_late(job) == STARTS_WITHOUT_PROGRESS - 1:
                why = f"did not end in {STARTS_WITHOUT_PROGRESS} starts: give it more time (--time)"
                tell(folder, job, ENDED, code=1, why=why)
                raise SystemExit(1)
            if own is not None and (is_late or slurm.is_preempted(own)):
                tell(folder, job, QUEUED, at=_LATE if is_late else "preemption")
                slurm.requeue(own, set())
                await_the_end()
            tell(folder, job, STOPPED)
            raise SystemExit(STOP_CODE)
        tell(folder, job, ENDED, code=code)
        if code:
            raise SystemExit(code if code > 0 else 128 - code)
        return 0

    def _was_late(self, job: str) -> int:
        """How often this job was queued again at its time limit."""
        return sum(event.get("at") == _LATE for event in events_of(Path(self.folder), job))

    def checkpoint(self) -> "CommandJob":
        """What submitit runs again if it is told to end before the command has begun."""
        return self


@dataclass
class Chain:
    """Runs jobs of this machine one after the other: those of a pipeline or of a sweep.

    needs: of each job the numbers of those that must have ended well; it is left out where one has not.
    """

    jobs: list[TrainJob | CommandJob]
    needs: list[list[int]]

    def __call__(self) -> int:
        """Return 0; SystemExit where a job failed, or at once where one was told to stop."""
        failed: set[int] = set()
        for number, job in enumerate(self.jobs):
            if missing := failed.intersection(self.needs[number]):
                tell(
                    Path(job.folder),
                    job_id(),
                    ENDED,
                    code=1,
                    why=f"{Path(self.jobs[min(missing)].folder).parent} has failed",
                )
                failed.add(number)
                continue
            environment = dict(os.environ)
            try:
                job()
            except SystemExit as end:
                if end.code == STOP_CODE:
                    raise
                failed.add(number)
            finally:
                os.environ.clear()
                os.environ.update(environment)
        if failed:
            raise SystemExit(1)
        return 0
