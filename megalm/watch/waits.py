"""How long this process has waited for other ranks: torch's `Work.wait`, through which all of its collectives go, is timed."""

import time
from typing import Any

from torch._C._distributed_c10d import Work

_seconds = 0.0
_depth = 0


def install() -> None:
    """Time every wait from now on; calling it again changes nothing."""
    if getattr(Work.wait, "is_timed", False):
        return
    wait = Work.wait

    def timed(self: Work, *arguments: Any, **named: Any) -> Any:
        global _seconds, _depth
        begin = time.perf_counter()
        _depth += 1
        try:
            return wait(self, *arguments, **named)
        finally:
            _depth -= 1
            _seconds += time.perf_counter() - begin

    timed.is_timed = True  # type: ignore[attr-defined]
    Work.wait = timed  # type: ignore[method-assign]


def seconds_waited() -> float:
    """Wall time that this process has spent in waits since `install`; on CUDA the host does not wait."""
    return _seconds


def is_waiting() -> bool:
    """Whether it waits at this moment, as another thread sees it."""
    return _depth > 0
