"""A clock that stands still while this process is kept from running, such as by SIGSTOP or a closed laptop."""

import time
from collections.abc import Callable


class AwakeClock:
    """Counts seconds between readings that come about every `tick` seconds; a longer pause counts as three ticks.

    Who reads it was not running then, and cannot say what others did. `now`: seconds of any origin.
    """

    def __init__(self, tick: float, now: Callable[[], float] = time.monotonic) -> None:
        self._longest, self._now = 3 * tick, now
        self._last, self._seconds = now(), 0.0

    def read(self) -> float:
        """Seconds awake since the clock was made."""
        now = self._now()
        self._seconds += min(now - self._last, self._longest)
        self._last = now
        return self._seconds
