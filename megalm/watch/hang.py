"""A thread in every rank that notices when no rank comes forward any more, finds out who is to blame, and ends the run.

Each rank writes a pulse every few seconds. One that has made no progress for too long looks at the others' pulses; where none of
them has either, it asks all for statements. The lowest rank that answers judges, reports, and all end with code 1. A rank that
works on, however slowly, keeps the others waiting for as long as it takes.
"""

import contextlib
import json
import logging
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch.distributed as dist

from megalm import launch
from megalm.config.watch import WatchConfig
from megalm.parallel.layout import Layout
from megalm.progress import CURRENT
from megalm.run_files import METRICS
from megalm.watch import waits
from megalm.watch.clock import AwakeClock
from megalm.watch.collectives import last_collectives
from megalm.watch.records import Pulse, Records, Statement
from megalm.watch.stacks import (
    born,
    calling_line,
    describe_state,
    in_order,
    own_stacks,
    stack_by_signal,
    told_by_signal,
)
from megalm.watch.verdict import Silent, Verdict, judge

logger = logging.getLogger(__name__)

LONGEST_TICK = 5.0
TICKS_OF_SILENCE = 4
MULTIPLE = 4
"""The limit is at least so many times the longest time between two signs of progress so far."""
END_TICKS = 12
"""So long the others wait for the verdict."""


@contextlib.contextmanager
def watching(settings: WatchConfig, directory: Path, layout: Layout, leads: bool = True) -> Iterator[None]:
    """Watch over this rank, and with it over the run in `directory`, until the block ends. Collective over the world.

    leads: the world has rank 0 of all, which clears what an earlier run has left; other worlds begin after it.
    """
    if not settings.hang_seconds:
        yield
        return
    waits.install()
    watch = _Watch(settings, directory, layout)
    with contextlib.ExitStack() as stack:
        try:
            if watch.rank == 0:
                watch.records.clear()
        except OSError as error:
            logger.warning("%s: %s", watch.records.folder, error)
        if leads:
            dist.barrier()
        try:
            stack.enter_context(told_by_signal(watch.records.stack_file(watch.rank)))
        except OSError as error:
            logger.warning("%s: %s; hangs are told without what other ranks say", watch.records.folder, error)
        watch.start()
        try:
            yield
        finally:
            watch.end()
            watch.records.leave(watch.rank)


class _Watch:
    """The thread and what it remembers."""

    def __init__(self, settings: WatchConfig, directory: Path, layout: Layout) -> None:
        self.settings, self.directory, self.layout = settings, directory, layout
        self.rank, self.world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.host, self.pid, self.born = socket.gethostname(), os.getpid(), born(os.getpid())
        self.records = Records(directory)
        self.tick = min(LONGEST_TICK, settings.hang_seconds / 8)
        self.clock = AwakeClock(self.tick)
        self.number = 0
        self.count, self.moved_at, self.longest = CURRENT.count, 0.0, 0.0
        self.seen: dict[int, tuple[int, float]] = {}
        """Of ranks whose pulse was looked at: its number, and when that was new."""
        self.looking_since: float | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        with contextlib.suppress(OSError):  # told by the thread
            self.records.write_pulse(self._pulse(self.clock.read()))  # one that stops at once was heard of
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def limit(self) -> float:
        """How long this rank may be without progress."""
        if CURRENT.steps == 0:
            return max(self.settings.hang_seconds, self.settings.start_seconds)
        return max(self.settings.hang_seconds, MULTIPLE * self.longest)

    def _run(self) -> None:
        while not self._over.wait(self.tick):
            now = self.clock.read()
            self._notice_progress(now)
            try:
                self.records.write_pulse(self._pulse(now))
                inquiry = self.records.inquiry()
                if inquiry is None and now - self.moved_at >= self.limit() and self._nobody_moves(now):
                    self.records.inquire()
                    inquiry = self.records.inquiry()
                if inquiry is not None:
                    self._answer(inquiry)
            except OSError as error:
                self._watch_alone(now, error)

    def _notice_progress(self, now: float) -> None:
        if CURRENT.count == self.count:
            return
        if CURRENT.steps > 1:  # the first step may compile
            self.longest = max(self.longest, now - self.moved_at)
        self.count, self.moved_at, self.looking_since = CURRENT.count, now, None

    def _pulse(self, now: float) -> Pulse:
        self.number += 1
        idle = now - self.moved_at
        return Pulse(
            self.rank,
            self.host,
            self.pid,
            self.born,
            self.number,
            idle,
            self.limit(),
            CURRENT.step,
            CURRENT.what,
        )

    def _nobody_moves(self, now: float) -> bool:
        """Whether all other ranks that are alive have been idle for too long, too; it takes some looks to know."""
        if self.looking_since is None:
            self.looking_since, self.seen = now, {}
        for rank in range(self.world_size):
            pulse = self.records.read_pulse(rank) if rank != self.rank else None
            if pulse is None:
                continue
            if rank not in self.seen or self.seen[rank][0] != pulse.number:
                self.seen[rank] = (pulse.number, now)
            is_alive = now - self.seen[rank][1] < TICKS_OF_SILENCE * self.tick
            if is_alive and pulse.idle < pulse.limit:
                return False
        return now - self.looking_since >= TICKS_OF_SILENCE * self.tick

    def _answer(self, inquiry: str) -> None:
        """State what this rank knows; judge if it is the lowest one that does, else wait for the verdict and end."""
        now = self.clock.read()
        collectives = last_collectives(self.layout)
        # on CUDA the host runs ahead, so that a call which is not done says more than where the host is
        on_device = self.layout.device.type == "cuda" and any(one.is_pending for one in collectives)
        is_waiting = waits.is_waiting() or on_device
        statement = Statement(
            self._pulse(now), in_order(own_stacks()), is_waiting, calling_line(), collectives
        )
        self.records.state(inquiry, statement)
        for number in range(TICKS_OF_SILENCE + END_TICKS):
            if self._over.wait(self.tick) or self.records.inquiry() != inquiry:
                return
            if self.records.has_verdict(inquiry):
                launch.follow_hang()
                os._exit(1)
            if number < TICKS_OF_SILENCE:
                continue
            statements = self.records.statements(inquiry)
            if self._has_moved(statements):
                self.records.withdraw()
                return
            if min(statements) == self.rank:
                silent, step = self._silent(statements), statement.pulse.step
                self._end(inquiry, step, judge(statements, silent, now - self.moved_at))
        os._exit(1)

    def _has_moved(self, statements: Mapping[int, Statement]) -> bool:
        """Whether a rank has come forward since, or comes back from a stop."""
        recent = any(one.pulse.idle < self.settings.hang_seconds / 2 for one in statements.values())
        return recent or CURRENT.count != self.count

    def _silent(self, statements: Mapping[int, Statement]) -> dict[int, Silent]:
        found = {}
        for rank in range(self.world_size):
            if rank in statements:
                continue
            pulse = self.records.read_pulse(rank)
            if pulse is None or pulse.host != self.host:
                found[rank] = Silent("gives no sign of life", pulse)
                continue
            if born(pulse.pid) != pulse.born:
                found[rank] = Silent("is gone", pulse)
                continue
            state = describe_state(pulse.pid)  # before a stopped one is let run for its stack
            stack = stack_by_signal(pulse.pid, self.records.stack_file(rank))
            found[rank] = Silent(state, pulse, in_order(stack) if stack else None)
        return found

    def _watch_alone(self, now: float, error: OSError) -> None:
        """Where the others cannot be asked, this rank's own patience is three times as long."""
        if now - self.moved_at >= 3 * self.limit():
            stack = in_order(own_stacks())
            text = f"no progress for {now - self.moved_at:.0f} s after step {CURRENT.step}, and other ranks cannot be asked ({error})"
            self._end(None, CURRENT.step, Verdict([self.rank], text, f"{text}\n{stack}"))

    def _end(self, inquiry: str | None, step: int, verdict: Verdict) -> None:
        """Tell it to everybody, and end."""
        with contextlib.suppress(OSError):
            line = json.dumps({"step": step, "event": f"hang: {verdict.headline}"}, ensure_ascii=False)
            with open(self.directory / METRICS, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        launch.report_hang(verdict.text, verdict.headline, verdict.rank)
        with contextlib.suppress(OSError):
            if inquiry is not None:
                self.records.write_verdict(inquiry, verdict.text)
        os._exit(1)
