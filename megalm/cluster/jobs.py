"""What a job does on each of its nodes: start the ranks, follow them, and begin again or queue again where that is due."""

import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from megalm import launch
from megalm.checkpoint.directory import list_checkpoints
from megalm.cluster import place, slurm
from megalm.cluster.events import (
    ENDED,
    EXCLUDED,
    FAILED,
    QUEUED,
    STARTED,
    STOPPED,
    events_of,
    failed_starts,
    tell,
)
from megalm.config import load_config
from megalm.run_files import CONFIG

TIME_LIMIT_SIGNAL = signal.SIGUSR2
"""What submitit has SLURM send before the time limit, and at preemption."""
FAILURES_OF_A_NODE = 2  # after which it is not used again
STARTS_WITHOUT_PROGRESS = 3
_AWAIT_KILL_SECONDS = 60.0  # another node has begun to end the job, or SLURM has
STOP_CODE = 128 + signal.SIGTERM


@dataclass
class TrainJob:
    """Runs `megalm train` of the configuration in `folder` (RUN/cluster) as a world of processes over the job's nodes, this node's here.

    submitit stores it with the job and calls it on each node; a job that is queued again calls it again, and training goes on from the
    last checkpoint. It holds plain values alone.
    """

    folder: str
    directory: str
    processes: int
    elastic: bool
    max_restarts: int
    env: dict[str, str] = field(default_factory=dict)

    def __call__(self) -> int:
        """Return 0 where the run has come to its end; SystemExit with another code where it has not."""
        os.chdir(self.directory)
        os.environ.update(self.env)
        before = signal.signal(signal.SIGTERM, self._stop_early)  # submitit would make nothing of it
        here = place.place_of_node()
        for name, value in place.network(here).items():
            os.environ.setdefault(name, value)
        watch = _Follower(self, here)
        signal.signal(signal.SIGTERM, before)
        code = watch.follow()
        if code:
            raise SystemExit(code)
        return code

    def _stop_early(self, number: int, _: FrameType | None) -> None:
        """There is nothing to save yet; a job that is in the queue again, or will be, is SLURM's to end."""
        own = slurm.own_job()
        if own is not None and (slurm.is_preempted(own) or not slurm.is_running(own)):
            return
        if own is None or os.environ["SLURM_NODEID"] == "0":
            tell(Path(self.folder), job_id(), STOPPED)
        raise SystemExit(128 + number)

    def checkpoint(self) -> "TrainJob":
        """What submitit runs again if it is told to end before the ranks have been started."""
        return self


def job_id() -> str:
    """What a job's events are recorded under: the number that it was submitted with."""
    return slurm.own_job() or os.environ.get("SUBMITIT_LOCAL_JOB_ID", "?")


def await_the_end() -> int:
    """SLURM, or the node that ended the job, kills this process; 1 where that has not happened in time."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(_AWAIT_KILL_SECONDS)
    return 1


class _Follower:
    """One node's part of a job, from its start (or from where it was queued again) to its end."""

    def __init__(self, job: TrainJob, here: place.NodePlace) -> None:
        self.job, self.here = job, here
        self.number, self.id = slurm.own_job(), job_id()
        self.folder = Path(job.folder)
        self.config, self.run = self.folder / CONFIG, self.folder.parent
        self.nodes = len(here.hosts)
        if job.elastic:
            self.nodes = place.usable_nodes(load_config(self.config), self.nodes, job.processes)

    def follow(self) -> int:
        """Run the ranks until they have ended for good; return the node's exit code."""
        if self.here.number >= self.nodes:
            print(
                f"megalm: this node is not needed: the layout shares a batch among {self.nodes} nodes",
                flush=True,
            )
            return 0
        while True:
            if self.here.number == 0:
                self._tell(STARTED, nodes=self.here.hosts[: self.nodes], step=self._saved_step())
            outcome = launch.supervise_node(self._command(), self.job.processes, self._world())
            if self.number is not None and outcome.signals and self._is_to_go_on(outcome):
                return self._queue_again()
            if outcome.code == 0:
                return self._ended(outcome)
            if outcome.code == 2:
                self._tell(ENDED, code=2, why=outcome.how)
                return 2
            if not self._begins_again(outcome):
                return outcome.code

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "megalm", "train", str(self.config)]

    def _world(self) -> launch.Place | None:
        if self.number is None:
            return None
        # Jobs that share a node must not share a port.
        port = 20000 + int(os.environ["SLURM_JOB_ID"]) % 20000
        first = self.here.number * self.job.processes
        return launch.Place(first, self.nodes * self.job.processes, self.here.address, port)

    def _ended(self, outcome: launch.Outcome) -> int:
        """The ranks have saved and ended well: the run is finished, or was told to stop."""
        if not outcome.signals or self._is_finished():
            if self.here.number == 0:
                self._tell(ENDED, code=0)
            return 0
        self._tell_stopped(outcome)
        return STOP_CODE

    def _tell_stopped(self, outcome: launch.Outcome) -> None:
        """Unless the job is in the queue again already."""
        if self.here.number == 0 and (self.number is None or slurm.is_running(self.number)):
            is_late = TIME_LIMIT_SIGNAL in outcome.signals
            why = "its time was up (--time): megalm runs resubmit goes on" if is_late else outcome.how
            self._tell(STOPPED, step=self._saved_step(), why=why or None)

    def _is_to_go_on(self, outcome: launch.Outcome) -> bool:
        """Whether the end was the time limit's or a preemption's, before the run's own; one requeued by hand is in the queue already."""
        assert self.number is not None
        if outcome.code == 0 and self._is_finished():
            return False
        return TIME_LIMIT_SIGNAL in outcome.signals or slurm.is_preempted(self.number)

    def _queue_again(self) -> int:
        assert self.number is not None
        if self.here.number:
            return await_the_end()
        starts = [event["step"] for event in self._events(STARTED)][-STARTS_WITHOUT_PROGRESS:]
        in_vain = len(starts) == STARTS_WITHOUT_PROGRESS and starts[0] == self._saved_step()
        if in_vain and not slurm.is_preempted(self.number):
            why = f"no step was saved in {len(starts)} starts: give it more time (--time)"
            self._tell(ENDED, code=1, why=why)
            return 1
        self._tell(QUEUED, step=self._saved_step())
        slurm.requeue(self.number, set())
        return await_the_end()

    def _begins_again(self, outcome: launch.Outcome) -> bool:
        """After a failure: whether to start the ranks here anew. On SLURM the job is queued again, and this does not return in time.

        Ranks that are told to stop before they have learned to save, or fail while they save, are not started again.
        """
        if outcome.signals:
            self._tell_stopped(outcome)
            return False
        if self.nodes > 1 and outcome.lost_peer:  # the node that has lost a rank of its own ends this one
            await_the_end()
        # another node may have told of this one already
        failures = failed_starts(events_of(self.folder, self.id)) | {len(self._events(STARTED))}
        left = max(0, self.job.max_restarts + 1 - len(failures))
        rank = outcome.failed
        self._tell(
            FAILED,
            rank=rank,
            host=None if rank is None else self.here.hosts[rank // self.job.processes],
            how=outcome.how,
            step=self._saved_step(),
            restarts_left=left,
        )
        if not left:
            why = f"{len(failures)} failures, restarts allowed: {self.job.max_restarts}"
            self._tell(ENDED, code=outcome.code, why=why)
            return False
        if self.number is None:
            return True
        bad = self._bad_nodes()
        for host in sorted(bad):
            self._tell(EXCLUDED, host=host)
        slurm.requeue(self.number, bad)
        await_the_end()
        return False

    def _bad_nodes(self) -> set[str]:
        hosts = [event.get("host") for event in self._events(FAILED)]
        return {host for host in hosts if host and hosts.count(host) >= FAILURES_OF_A_NODE}

    def _is_finished(self) -> bool:
        return self._saved_step() >= load_config(self.config).train.steps

    def _saved_step(self) -> int:
        return max(list_checkpoints(self.run), default=0)

    def _events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in events_of(self.folder, self.id) if event["event"] == kind]

    def _tell(self, event: str, **more: Any) -> None:
        tell(self.folder, self.id, event, **more)
