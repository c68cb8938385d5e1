"""What ranks tell each other through files in RUN_DIR/.watch: pulses while all is well, statements when nothing moves.

Everything here survives a full disk as far as it can: a pulse is written over the last one, in a block of fixed size.
"""

import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FOLDER = ".watch"
_BLOCK = 1024
_INQUIRY = "inquiry"


@dataclass
class Pulse:
    """A rank's sign of life. number: grows with each. idle: seconds without progress; limit: how many it may be.

    born: when the process began, in the kernel's count, which tells it from a later one of the same number.
    """

    rank: int
    host: str
    pid: int
    born: str
    number: int
    idle: float
    limit: float
    step: int
    what: str


@dataclass
class Collective:
    """A call that ranks make together. number: of its group's. sizes: shapes of its tensors."""

    name: str
    group: str
    ranks: list[int]
    number: int
    sizes: list[Any]
    dtypes: list[str]
    is_pending: bool


@dataclass
class Statement:
    """What a rank says when nothing moves: its pulse, the stacks of its threads, and its last collective of each group.

    is_waiting: whether it waits for other ranks, be it in a collective or for a message. at: file, line and function where it is.
    """

    pulse: Pulse
    stack: str
    is_waiting: bool
    at: str
    collectives: list[Collective] = field(default_factory=list)


class Records:
    """The files of one run, as this rank reads and writes them. All methods raise OSError where storage fails."""

    def __init__(self, run_directory: Path) -> None:
        self.folder = run_directory / FOLDER

    def clear(self) -> None:
        """Forget what an earlier process left."""
        with contextlib.suppress(FileNotFoundError):
            for path in self.folder.iterdir():
                path.unlink(missing_ok=True)

    def write_pulse(self, pulse: Pulse) -> None:
        """Replace this rank's pulse."""
        text = json.dumps(asdict(pulse)).encode()
        path = self._pulse(pulse.rank)
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        except FileNotFoundError:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(file, text.ljust(_BLOCK), 0)
        finally:
            os.close(file)  # which on network file systems brings it to the others

    def read_pulse(self, rank: int) -> Pulse | None:
        """The newest pulse of a rank; None where it has none, or is just writing it."""
        try:
            return Pulse(**json.loads(self._pulse(rank).read_bytes()))
        except (FileNotFoundError, ValueError):
            return None

    def stack_file(self, rank: int) -> Path:
        """Where a rank writes its stacks at a signal."""
        return self.folder / f"stack-{rank}"

    def leave(self, rank: int) -> None:
        """Take this rank's files away; the last one takes the folder along, unless there is a verdict in it to look at."""
        with contextlib.suppress(OSError):
            self.stack_file(rank).unlink(missing_ok=True)
            self._pulse(rank).unlink(missing_ok=True)
            self.folder.rmdir()

    def inquire(self) -> None:
        """Ask all ranks for statements."""
        with contextlib.suppress(FileExistsError):
            file = os.open(self.folder / _INQUIRY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                os.write(file, secrets.token_hex(4).encode())
            finally:
                os.close(file)

    def inquiry(self) -> str | None:
        """Name of the inquiry that is open, if there is one."""
        try:
            return (self.folder / _INQUIRY).read_text() or None
        except FileNotFoundError:
            return None

    def withdraw(self) -> None:
        """Close the inquiry: something has moved."""
        (self.folder / _INQUIRY).unlink(missing_ok=True)

    def state(self, inquiry: str, statement: Statement) -> None:
        """Answer an inquiry."""
        path = self.folder / f"{inquiry}-{statement.pulse.rank}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(statement)), encoding="utf-8")
        temporary.replace(path)

    def statements(self, inquiry: str) -> Mapping[int, Statement]:
        """The answers to an inquiry so far, by rank."""
        found = {}
        for path in sorted(self.folder.glob(f"{inquiry}-*.json")):
            fields = json.loads(path.read_text(encoding="utf-8"))
            pulse = Pulse(**fields["pulse"])
            collectives = [Collective(**one) for one in fields["collectives"]]
            found[pulse.rank] = Statement(
                pulse, fields["stack"], fields["is_waiting"], fields["at"], collectives
            )
        return dict(sorted(found.items()))

    def write_verdict(self, inquiry: str, text: str) -> None:
        """Tell all ranks how an inquiry ended."""
        (self.folder / f"{inquiry}.txt").write_text(text, encoding="utf-8")

    def has_verdict(self, inquiry: str) -> bool:
        """Whether it has ended."""
        return (self.folder / f"{inquiry}.txt").exists()

    def _pulse(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}"
