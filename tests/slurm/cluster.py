"""A SLURM cluster of several nodes with pretended GPUs on this machine, for tests; it needs no root and no systemd."""

import contextlib
import os
import pwd
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from megalm.launch import die_with_parent

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "sinfo", "squeue")
PACKAGES = "slurmctld slurmd slurm-client munge"
SECONDS = 300  # for anything that is waited for
# Ports of jobs follow from their numbers: clusters of tests that run side by side (`pytest -n`) number from elsewhere.
FIRST_JOB = 1 + 1000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_CALL_SECONDS = 30
_POLL_SECONDS = 0.05

_CONFIG = """\
ClusterName=megalm-tests
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=10
MinJobAge=3600
InactiveLimit=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
NodeName=DEFAULT Sockets=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory={memory_mb} Gres=gpu:{gpus} State=UNKNOWN
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 State=UP PriorityTier=1 GraceTime=20 DefMemPerCPU=100
PartitionName=high Nodes=ALL MaxTime=INFINITE DefaultTime=10 State=UP PriorityTier=10 DefMemPerCPU=100 PreemptMode=OFF
"""


def missing_programs() -> list[str]:
    """Programs of SLURM that are not installed here."""
    return [name for name in PROGRAMS if _program(name) is None]


class Cluster:
    """A running cluster. Jobs in partition `high` preempt those in `main`; nodes are 127.0.1.1, 127.0.1.2, ...

    Nodes share this machine's file system, ports and cores, however many of these they pretend to have, so tests should
    run few tasks at a time. Names of nodes are addresses of the loopback interface, which torch's rendezvous resolves.
    """

    def __init__(self, nodes: int = 4, cpus: int = 16, memory_mb: int = 64_000, gpus: int = 8):
        # Short, for the path of a socket has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="megalm-slurm-"))
        self.nodes = [f"127.0.1.{number + 1}" for number in range(nodes)]
        self.environment = {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{self.folder / 'bin'}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
        }
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._configure(cpus, memory_mb, gpus)

    def __enter__(self) -> "Cluster":
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def call(self, *command: str, check: bool = True) -> str:
        """Run a client program of SLURM and return what it prints."""
        done = subprocess.run(
            command,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=_CALL_SECONDS,
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def queue(self) -> list[str]:
        """A line for each job that waits or runs: id, name, state, reason."""
        return self.call("squeue", "--noheader", "--array", "--format=%i %j %T %r").splitlines()

    def states(self, job: str) -> dict[str, str]:
        """The state of a job, or of each task of an array, by id; states of ended jobs are kept."""
        records = self.call("scontrol", "show", "job", "--oneliner", job).splitlines()
        return dict(map(_id_and_state, filter(None, records)))

    def restarts(self, job: str) -> int:
        """How often a job was requeued."""
        record = self.call("scontrol", "show", "job", "--oneliner", job)
        return int(re.search(r" Restarts=(\d+)", record)[1])

    def wait(self) -> None:
        """Return when no job waits or runs any more."""
        self.until(lambda: not self.queue())

    def until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition()` holds."""
        end = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < end, f"did not happen in {SECONDS} s; {self.queue()}\n{self._logs()}"
            time.sleep(_POLL_SECONDS)

    def clear(self) -> None:
        """End all jobs."""
        user = str(os.getuid())
        self.call("scancel", "--user", user, check=False)
        self.call("scancel", "--user", user, "--full", "--signal=KILL", check=False)
        self.wait()

    def fail(self, node: str) -> None:
        """Let a node die with all that runs on it, and SLURM learn of it, which would take minutes by itself."""
        daemon = self._daemons.pop(self._number_of(node))
        daemon.kill()
        daemon.wait()
        for process in _processes_with(
            f"SLURMD_NODENAME={node}", f"SLURM_CONF={self.environment['SLURM_CONF']}"
        ):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        for state in (
            "DOWN",
            "DRAIN",
        ):  # a word that was on its way when it died would bring it back from the first
            self.call("scontrol", "update", f"NodeName={node}", f"State={state}", "Reason=died")

    def repair(self, node: str) -> None:
        """Bring back a node that has died."""
        self._daemon(f"slurmd-{node}", "slurmd", "-D", "-N", node)
        self.call("scontrol", "update", f"NodeName={node}", "State=RESUME")
        self.until(lambda: node in self._idle())

    def _number_of(self, node: str) -> int:
        return next(
            number
            for number, daemon in enumerate(self._daemons)
            if isinstance(daemon.args, list) and daemon.args[-1] == node
        )

    def stop(self) -> None:
        """End all jobs and daemons, and remove the folder."""
        with contextlib.suppress(Exception):
            if self._answers():
                self.clear()
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons = []
        for process in _processes_with(f"SLURM_CONF={self.environment['SLURM_CONF']}"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _configure(self, cpus: int, memory_mb: int, gpus: int) -> None:
        port, *ports = _free_ports(1 + len(self.nodes))
        for name in ("bin", "state", "log", "dev", *(f"spool/{node}" for node in self.nodes)):
            (self.folder / name).mkdir(parents=True)
        nodes = "\n".join(
            f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port}"
            for node, port in zip(self.nodes, ports, strict=True)
        )
        config = _CONFIG.format(
            host=socket.gethostname().partition(".")[0],
            user=pwd.getpwuid(os.getuid()).pw_name,
            **{"port": port, "folder": self.folder, "nodes": nodes},
            first_job=FIRST_JOB,
            **{"cpus": cpus, "memory_mb": memory_mb, "gpus": gpus},
        )
        (self.folder / "slurm.conf").write_text(config)
        for number in range(gpus):
            (self.folder / f"dev/nvidia{number}").symlink_to("/dev/null")
        (self.folder / "gres.conf").write_text(
            f"AutoDetect=off\nNodeName={','.join(self.nodes)} Name=gpu File={self.folder}/dev/nvidia[0-{gpus - 1}]\n"
        )
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        sacct = self.folder / "bin/sacct"
        sacct.write_text(
            f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {Path(__file__).with_name("sacct.py")} "$@"\n'
        )
        sacct.chmod(0o755)

    def _start(self) -> None:
        folder = self.folder
        files = {"socket": "munge.sock", "key-file": "munge.key", "pid-file": "munged.pid"}
        files |= {"log-file": "log/munged.log", "seed-file": "munged.seed"}
        options = [f"--{option}={folder / name}" for option, name in files.items()]
        self._daemon("munged", "munged", "--foreground", "--force", *options)
        self._await((folder / "munge.sock").exists)
        self._daemon("slurmctld", "slurmctld", "-D", "-c")
        for node in self.nodes:
            self._daemon(f"slurmd-{node}", "slurmd", "-D", "-N", node)
        self._await(lambda: self._idle() == set(self.nodes))

    def _daemon(self, name: str, program: str, *arguments: str) -> None:
        """Start a daemon that ends with this process, even where that is killed."""
        with open(self.folder / f"log/{name}.out", "wb") as log:
            daemon = subprocess.Popen(
                [str(_program(program)), *arguments],
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self._daemons.append(daemon)

    def _await(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + SECONDS
        while not condition():
            dead = [str(daemon.args[0]) for daemon in self._daemons if daemon.poll() is not None]
            if dead or time.monotonic() > end:
                raise RuntimeError(f"SLURM does not start ({' '.join(dead) or 'no answer'})\n{self._logs()}")
            time.sleep(_POLL_SECONDS)

    def _idle(self) -> set[str]:
        return set(
            self.call("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N", check=False).split()
        )

    def _answers(self) -> bool:
        return "UP" in self.call("scontrol", "ping", check=False)

    def _logs(self) -> str:
        return "\n".join(
            f"{path.name}: {line}"
            for path in sorted((self.folder / "log").iterdir())
            for line in path.read_text(errors="replace").splitlines()[-8:]
        )


def _program(name: str) -> str | None:
    """Daemons lie in directories that are not on every user's PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


def _id_and_state(record: str) -> tuple[str, str]:
    fields = dict(field.split("=", 1) for field in record.split() if "=" in field)
    task = fields.get("ArrayTaskId")
    return f"{fields['ArrayJobId']}_{task}" if task else fields["JobId"], fields["JobState"]


def _processes_with(*variables: str) -> Iterator[int]:
    """Processes in whose environment `variables` are set, such as what a killed daemon left of a job; not this one."""
    wanted = {variable.encode() for variable in variables}
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted.issubset(path.read_bytes().split(b"\0")) and int(path.parent.name) != os.getpid():
                yield int(path.parent.name)
