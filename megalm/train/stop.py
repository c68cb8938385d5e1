"""SIGTERM or Ctrl-C as a request to stop: the run ends well, after a step that all ranks agree on."""

import ctypes
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from megalm.launch import ANNOUNCED, is_connection_loss

# A launcher passes the signal on that a batch system sends to every process, so one request may come several times.
REPEAT_SECONDS = 5.0


class StopRequest:
    """Within its `with` block SIGTERM is kept for `agreed`; a second request, some seconds later, ends the process.

    So it does in the middle of a long operation, where Python's own handlers have to wait. SIGUSR1 and SIGUSR2, by which batch systems
    announce the end of a job to all its processes, are kept, too.

    The first Ctrl-C (SIGINT) is kept too, the second interrupts at once.

    Only the main thread can take signals; elsewhere the block leaves them alone. Where the block ends because a peer was
    lost, SIGTERM was the launcher's answer to that and takes its usual effect after all.
    """

    def __init__(self, device: torch.device) -> None:
        self._flag = torch.zeros((), dtype=torch.int32, device=device)
        self._asked = False
        self._previous: Any = signal.SIG_DFL
        self._interrupt: Any = signal.default_int_handler
        self._announced: dict[int, Any] = {}
        self._watch: _Watch | None = None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._receive) or signal.SIG_DFL
            self._interrupt = (
                signal.signal(signal.SIGINT, self._receive_interrupt) or signal.default_int_handler
            )
            self._announced = {number: signal.signal(number, self._receive) for number in ANNOUNCED}
            self._watch = _Watch()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._watch is None:
            return
        self._watch.end()
        signal.signal(signal.SIGTERM, self._previous)
        signal.signal(signal.SIGINT, self._interrupt)
        for number, handler in self._announced.items():
            signal.signal(number, handler)
        if self._asked and error is not None and is_connection_loss(error):
            os.kill(os.getpid(), signal.SIGTERM)

    def agreed(self) -> bool:
        """Whether any rank has been asked to stop; the same answer on every rank. Collective."""
        self._flag.fill_(self._asked)
        dist.all_reduce(self._flag, dist.ReduceOp.MAX)
        return bool(self._flag.item())

    def _receive_interrupt(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, self._interrupt)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._asked = True


class _Watch:
    """A thread that learns of signals as they come, whatever the main thread is in, and answers the second SIGTERM."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._run, name="signals", daemon=True)
        self._thread.start()

    def end(self) -> None:
        signal.set_wakeup_fd(self._before)
        os.close(self._writer)
        self._thread.join()
        os.close(self._reader)

    def _run(self) -> None:
        first: float | None = None
        while received := os.read(self._reader, 1):
            now = time.monotonic()
            if received[0] != signal.SIGTERM:
                continue
            if first is None:
                first = now
            elif now - first >= REPEAT_SECONDS:
                _end_process()


def _end_process() -> None:
    """By SIGTERM itself, so that whoever waits for this process learns why; Python restores handlers in the main thread alone."""
    ctypes.CDLL(None).signal(int(signal.SIGTERM), None)
    os.kill(os.getpid(), signal.SIGTERM)
