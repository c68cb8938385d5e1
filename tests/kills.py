"""Ends work by SIGKILL at a place of one's choice, to see what a kill leaves."""

import itertools
import os
import signal
from collections.abc import Callable
from typing import Any


def killed(owner: Any, call: str, count: int, work: Callable[[], object]) -> bool:
    """Do `work` in a forked process that kills itself before call number `count` (from 0) of `owner.call`; whether it did."""
    child = os.fork()
    if child == 0:
        try:
            function, left = getattr(owner, call), itertools.count(count, -1)

            def fatal(*positional: Any, **keywords: Any) -> Any:
                if next(left) == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*positional, **keywords)

            setattr(owner, call, fatal)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0
