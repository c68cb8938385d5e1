"""SIGTERM or Ctrl-C as a request to stop: the run ends well, after a step that all ranks agree on."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from megalm.launch import is_connection_loss

# A launcher passes the signal on that a batch system sends to every process, so one request may come several times.
REPEAT_SECONDS = 5.0


class StopRequest:
    """Within its `with` block SIGTERM is kept for `agreed`; a second request, some seconds later, ends the process.

    The first Ctrl-C (SIGINT) is kept too, the second interrupts at once.

    Only the main thread can take signals; elsewhere the block leaves them alone. Where the block ends because a peer was
    lost, SIGTERM was the launcher's answer to that and takes its usual effect after all.
    """

    def __init__(self, device: torch.device) -> None:
        self._flag = torch.zeros((), dtype=torch.int32, device=device)
        self._received_at: float | None = None
        self._previous: Any = signal.SIG_DFL
        self._interrupt: Any = signal.default_int_handler
        self._installed = False

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._receive) or signal.SIG_DFL
            self._interrupt = (
                signal.signal(signal.SIGINT, self._receive_interrupt) or signal.default_int_handler
            )
            self._installed = True
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not self._installed:
            return
        signal.signal(signal.SIGTERM, self._previous)
        signal.signal(signal.SIGINT, self._interrupt)
        if self._received_at is not None and error is not None and is_connection_loss(error):
            os.kill(os.getpid(), signal.SIGTERM)

    def agreed(self) -> bool:
        """Whether any rank has been asked to stop; the same answer on every rank. Collective."""
        self._flag.fill_(self._received_at is not None)
        dist.all_reduce(self._flag, dist.ReduceOp.MAX)
        return bool(self._flag.item())

    def _receive_interrupt(self, number: int, frame: FrameType | None) -> None:
        self._received_at = time.monotonic()
        signal.signal(signal.SIGINT, self._interrupt)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._received_at is None:
            self._received_at = now
        elif now - self._received_at >= REPEAT_SECONDS:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
