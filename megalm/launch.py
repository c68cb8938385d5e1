"""Starts the processes of a local world and ends them together, with the first failing rank's error shown first, once."""

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from megalm.errors import UserError

POLL_SECONDS = 0.05
SETTLE_SECONDS = 0.2  # ranks that fail together are judged together
GRACE_SECONDS = 3.0  # between SIGTERM and SIGKILL
SECONDARY_WAIT_SECONDS = 5.0  # a rank that lost a peer waits this long to be ended by its launcher
TAIL_LINES = 20

_SUPERVISOR = "MEGALM_SUPERVISOR_PID"
_ERROR_DIR = "MEGALM_ERROR_DIR"
_PR_SET_PDEATHSIG = 1
_FAILURE, _USER_ERROR, _LOST_PEER, _HANG = "failure", "user error", "lost peer", "hang"  # what a rank reports
ANNOUNCED = (signal.SIGUSR1, signal.SIGUSR2)
"""How batch systems announce the end of a job."""

# What gloo, NCCL and the TCP store say when the other end is gone.
_CONNECTION_LOSS = re.compile(
    r"connection (closed|reset) by peer|connection refused|broken pipe|socket (closed|timeout)|gloo/transport|"
    r"failed to (recv|send)|ncclRemoteError|ncclSystemError|NCCL communicator was aborted|"
    r"timed out waiting .* for (recv|send) operation",
    re.IGNORECASE,
)
_CONNECTION_ERRORS = {"DistBackendError", "DistNetworkError", "DistStoreError"}


def run_local(argv: Sequence[str], nproc: int, interactive: bool = False) -> int:
    """Run `megalm ARGV` as `nproc` ranks on this machine and return the exit code for the shell.

    Rank 0 reads this process's input, and its output passes through; of the others only the first failing rank's error is
    shown. 0: every rank ended well; 1: a rank failed; 2: the cause was a UserError; 128 + signal where this process was told
    to stop and a rank did not end well (Ctrl-C: 130). A rank that trains takes SIGTERM as a request to save and end well.
    interactive: what Ctrl-C means is left to the ranks each time, not the first time alone.
    """
    return supervise([sys.executable, "-m", "megalm", *argv], nproc, interactive)


@dataclass(frozen=True)
class Place:
    """Where this machine's ranks stand in a world of several machines: from `first_rank` on; the world meets at address and port."""

    first_rank: int
    world_size: int
    address: str
    port: int


@dataclass(frozen=True)
class Outcome:
    """What became of this machine's ranks.

    code: for the shell, as of `run_local`. signals: by which this process was told to stop. failed: the rank that began the failure and
    `how` it ended. lost_peer: the ranks here ended because they lost one elsewhere. A
    rank that hangs may be one of another machine; `failed` is None where nobody is to blame.
    """

    code: int
    signals: frozenset[int] = frozenset()
    failed: int | None = None
    how: str = ""
    lost_peer: bool = False


def supervise(command: Sequence[str], nproc: int, interactive: bool = False) -> int:
    """Run `command` as `nproc` ranks, as `run_local` does for megalm's own commands."""
    return _supervise(command, nproc, None, _StopRequest(), interactive).code


def supervise_node(command: Sequence[str], nproc: int, place: Place | None = None) -> Outcome:
    """Run `command` as `nproc` ranks, of a larger world at `place`.

    SIGUSR1 and SIGUSR2, by which batch systems announce the end of a job, ask it to stop, too; ranks get SIGTERM for them. These systems
    send several signals and kill when they have waited long enough, so that only the first one is passed on.
    """
    return _supervise(command, nproc, place, _StopRequest(is_patient=True))


def _supervise(
    command: Sequence[str], nproc: int, place: Place | None, stop: "_StopRequest", interactive: bool = False
) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="megalm-") as error_dir, stop:
        world = _World(
            command, nproc, Path(error_dir), place, _ignore_announcements if stop.is_patient else None
        )
        try:
            return world.wait(stop, interactive)
        finally:
            world.kill()


def in_world() -> bool:
    """Whether a launcher (ours, torchrun, srun) has made this process a rank of a world."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


@contextlib.contextmanager
def guard() -> Iterator[None]:
    """Wrap a whole program, so that in a world of processes the error that began it all is the one shown.

    Outside a world it does nothing. In one, an exception is reported and ends the process: a UserError as one line and
    code 2, by one rank; a connection loss only after some seconds, in which the launcher ends this rank, because another
    rank's failure is the cause; anything else at once, as a traceback under the rank's number, and code 1.
    """
    _die_with_supervisor()
    if not in_world():
        yield
        return
    try:
        yield
    except UserError as error:
        _report_user_error(str(error))
        _leave(2)
    except KeyboardInterrupt:
        _leave(130)
    except Exception as error:
        if is_connection_loss(error):
            _await_the_end()
            _report(f"lost another rank: {_first_line(error)}", _LOST_PEER)
        else:
            assert error.__traceback__ is not None
            frames = traceback.format_exception(
                type(error), error, error.__traceback__.tb_next
            )  # less this one
            _report("".join(frames), _FAILURE)
        _leave(1)


def is_connection_loss(error: BaseException) -> bool:
    """Whether `error` began with a lost peer, and so follows from another rank's failure."""
    root = error
    while (deeper := root.__cause__ or (None if root.__suppress_context__ else root.__context__)) is not None:
        root = deeper
    if any(kind.__name__ in _CONNECTION_ERRORS for kind in type(root).__mro__):
        return True
    return isinstance(root, RuntimeError) and _CONNECTION_LOSS.search(str(root)) is not None


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent dies (Linux; elsewhere this does nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """The variables by which torch finds its place in a world on this machine."""
    return _place_environment(Place(0, world_size, "127.0.0.1", port), rank, world_size)


def _place_environment(place: Place, number: int, count: int) -> dict[str, str]:
    """The same for the process `number` of the `count` on this machine."""
    return {
        "RANK": str(place.first_rank + number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(place.world_size),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": place.address,
        "MASTER_PORT": str(place.port),
    }


def describe_exit(code: int) -> str:
    """`exit code 3`, or `killed by SIGKILL` for the negative codes of subprocess."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


@dataclass
class _Child:
    """One rank: its process, and for ranks other than 0 the last lines it wrote."""

    rank: int
    process: subprocess.Popen[bytes]
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    reader: threading.Thread | None = None

    def drain(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.tail.append(line.decode(errors="replace").rstrip("\n"))

    def last_lines(self) -> str:
        if self.reader is not None:
            self.reader.join(timeout=1)
        return "\n".join(self.tail)

    def signal_group(self, number: int) -> None:
        """Each rank leads a session of its own, so this reaches what it started (checkpoint writers, loaders) too."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


class _World:
    """The ranks of one local world."""

    def __init__(
        self,
        command: Sequence[str],
        nproc: int,
        error_dir: Path,
        place: Place | None,
        prepare: Callable[[], None] | None,
    ) -> None:
        """prepare: called in each rank's process before its program is."""
        self.error_dir = error_dir
        self.children: list[_Child] = []
        place = place or Place(0, nproc, "127.0.0.1", free_port())
        shared = _shared_environment(nproc, nproc == place.world_size) | {
            _SUPERVISOR: str(os.getpid()),
            _ERROR_DIR: str(error_dir),
        }
        try:
            for number in range(nproc):
                environment = shared | _place_environment(place, number, nproc)
                self.children.append(
                    _start(command, place.first_rank + number, environment, number == 0, prepare)
                )
        except BaseException:
            self.kill()
            raise

    def wait(self, stop: "_StopRequest", interactive: bool) -> Outcome:
        """Follow the ranks until all have ended, and say what became of them."""
        while not self._failed():
            if all(child.process.poll() == 0 for child in self.children):
                return Outcome(0, stop.taken)
            if stop.pending():
                is_first = stop.number is None
                is_each = interactive and stop.next() == signal.SIGINT
                if not (is_first or is_each or stop.is_patient):  # asked twice
                    break
                number = stop.take()
                if is_first or is_each:
                    self._signal(signal.SIGTERM if number in ANNOUNCED else number)
            time.sleep(POLL_SECONDS)
        if stop.number is not None and not self._reported():
            self._end(stop)
            return Outcome(128 + stop.number, stop.taken)
        time.sleep(SETTLE_SECONDS)
        while stop.is_patient and stop.pending():
            stop.take()
        outcome = self._explain(stop.taken)
        self._end(stop)
        return outcome

    def kill(self) -> None:
        """End what is left, at once, with everything the ranks started."""
        self._signal(signal.SIGKILL)
        for child in self.children:
            child.process.wait()

    def _failed(self) -> bool:
        return any(child.process.poll() for child in self.children) or self._reported()

    def _reported(self) -> bool:
        return any(self.error_dir.glob("rank_*.json"))

    def _signal(self, number: int) -> None:
        for child in self.children:
            child.signal_group(number)

    def _end(self, stop: "_StopRequest") -> None:
        """SIGTERM and a grace, cut short by a second request; whoever is left then, `supervise` kills."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < deadline and not stop.pending():
            if all(child.process.poll() is not None for child in self.children):
                return
            time.sleep(POLL_SECONDS)

    def _explain(self, signals: frozenset[int]) -> Outcome:
        """Print the first failure and return what there is to say of it."""
        cause, report = self._cause()
        if report is not None and report["kind"] == _USER_ERROR:
            print(f"megalm: error: {report['text']}", file=sys.stderr, flush=True)
            return Outcome(2, signals, cause.rank, report["text"])
        if report is not None and report["kind"] == _LOST_PEER:
            print(f"rank {cause.rank}: {report['text']}", file=sys.stderr, flush=True)
            return Outcome(1, signals, cause.rank, report["text"], lost_peer=True)
        if report is not None and report["kind"] == _HANG:
            print(report["text"].rstrip(), file=sys.stderr, flush=True)
            return Outcome(1, signals, report["rank"], report["how"])
        code = cause.process.poll()
        how = "exit code 1" if code is None else describe_exit(code)
        text = report["text"].rstrip() if report is not None else cause.last_lines()
        print(f"rank {cause.rank} failed ({how}){':' if text else ''}", file=sys.stderr)
        if text:
            print(text, file=sys.stderr)
        sys.stderr.flush()
        return Outcome(2 if code == 2 and report is None else 1, signals, cause.rank, how)

    def _cause(self) -> tuple[_Child, dict[str, Any] | None]:
        """The rank that began it, with its report if it could write one.

        A signal (other than an abort of its own) is nobody's consequence; else the earliest report; else rank 0, whose
        words have passed through already; else whoever ended.
        """
        ranks = {child.rank: child for child in self.children}
        reports = {rank: report for rank in ranks if (report := self._report_of(rank))}
        ended = [child for child in self.children if child.process.poll()]
        for child in ended:
            if child.process.returncode < 0 and child.process.returncode != -signal.SIGABRT:
                return child, reports.get(child.rank)
        if reports:
            rank = min(reports, key=lambda rank: reports[rank]["time"])
            return ranks[rank], reports[rank]
        return min(ended, key=lambda child: child.rank), None

    def _report_of(self, rank: int) -> dict[str, Any] | None:
        path = self.error_dir / f"rank_{rank}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


class _StopRequest:
    """SIGINT, SIGTERM and SIGHUP, kept for the loop that follows the ranks instead of ending this process.

    is_patient: to be asked again means no more, and what batch systems send is kept, too.
    """

    def __init__(self, is_patient: bool = False) -> None:
        self.is_patient = is_patient
        self.signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *(ANNOUNCED if is_patient else ()))
        self.number: int | None = None
        """The last one taken."""
        self.taken: frozenset[int] = frozenset()
        self._received: deque[int] = deque()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "_StopRequest":
        for number in self.signals:
            self._previous[number] = signal.signal(number, lambda number, _: self._received.append(number))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def pending(self) -> bool:
        return bool(self._received)

    def next(self) -> int:
        """The oldest signal not taken yet, left there."""
        return self._received[0]

    def take(self) -> int:
        """The oldest signal not taken yet."""
        self.number = self._received.popleft()
        self.taken |= {self.number}
        return self.number


def _ignore_announcements() -> None:
    """Batch systems send them to all of a job's processes, and a rank that is about to start would end by them."""
    for number in ANNOUNCED:
        signal.signal(number, signal.SIG_IGN)


def _start(
    command: Sequence[str],
    rank: int,
    environment: dict[str, str],
    shown: bool,
    prepare: Callable[[], None] | None,
) -> _Child:
    """shown: it reads this process's input, and its output passes through."""
    output: int | None = None if shown else subprocess.PIPE
    child = _Child(
        rank,
        subprocess.Popen(
            list(command),
            env=environment,
            stdin=None if shown else subprocess.DEVNULL,
            stdout=output,
            stderr=None if shown else subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=prepare,
        ),
    )
    if not shown:
        child.reader = threading.Thread(target=child.drain, daemon=True)
        child.reader.start()
    return child


def _shared_environment(nproc: int, is_alone: bool) -> dict[str, str]:
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // nproc)))
    if sys.platform == "linux" and is_alone:
        # The machine's name need not resolve to an address of this machine; loopback always works.
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return environment


def available_cores() -> int:
    """Cores this process may run on, which in a container or a SLURM step are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _die_with_supervisor() -> None:
    parent = os.environ.pop(_SUPERVISOR, None)
    if parent is None:
        return
    die_with_parent()
    if os.getppid() != int(parent):  # it died before the line above took effect
        os._exit(1)


def _report_user_error(message: str) -> None:
    """Every rank meets the same mistake, as a rule: rank 0 speaks, the others only if nobody ended them meanwhile."""
    if _ERROR_DIR not in os.environ and _rank() != 0:
        _await_the_end()
    _report(message, _USER_ERROR)


def report_hang(text: str, how: str, rank: int | None) -> None:
    """Hand over what is known of a rank that hangs, by another one that does not; the caller ends with code 1.

    how: in a line. rank: None where nobody is to blame.
    """
    _report(text, _HANG, how=how, rank=rank)


def follow_hang() -> None:
    """Say that this rank ends because another one hangs, of which yet another one tells."""
    if _ERROR_DIR in os.environ:
        _report("ends because another rank hangs", _LOST_PEER)


def _report(text: str, kind: str, **more: Any) -> None:
    """Hand the error to the supervisor, which prints one; under any other launcher print it here."""
    error_dir = os.environ.get(_ERROR_DIR)
    if error_dir is None:
        prefix = {_USER_ERROR: "megalm: error: ", _HANG: ""}.get(kind, f"rank {_rank()}: ")
        print(f"{prefix}{text.rstrip()}", file=sys.stderr, flush=True)
        return
    path = Path(error_dir) / f"rank_{_rank()}.json"
    report = {"time": time.monotonic(), "kind": kind, "text": text, **more}
    temporary = path.with_suffix(".tmp")
    with contextlib.suppress(FileNotFoundError):  # the supervisor has gone on without us
        temporary.write_text(json.dumps(report), encoding="utf-8")
        temporary.rename(path)


def _await_the_end() -> None:
    """Wait for the launcher's SIGTERM, which from here on ends the process even if a handler was installed."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(SECONDARY_WAIT_SECONDS)


def _leave(code: int) -> NoReturn:
    """End without the interpreter's teardown, which aborts or hangs in a process group that has lost its peers."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
