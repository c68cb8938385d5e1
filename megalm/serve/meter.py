"""How much each client has asked for lately: token buckets, which fill evenly and hold what one minute allows."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Bucket:
    """Holds `per_minute` at most. It may be overdrawn by what turns out to cost more; nothing is let through until it is filled again."""

    per_minute: int
    clock: Callable[[], float] = time.monotonic
    level: float = field(init=False)
    filled_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.level, self.filled_at = float(self.per_minute), self.clock()

    def left(self) -> float:
        """What it holds now."""
        now = self.clock()
        rate = self.per_minute / 60
        self.level = min(self.per_minute, self.level + (now - self.filled_at) * rate)
        self.filled_at = now
        return self.level

    def seconds_until(self, amount: float) -> int:
        """Whole seconds until it holds so much, 0 where it does."""
        missing = min(amount, self.per_minute) - self.left()
        return max(0, math.ceil(missing * 60 / self.per_minute))

    def take(self, amount: float) -> None:
        """Take so much, even beyond the bottom; a negative amount gives back."""
        self.level = min(self.per_minute, self.left() - amount)


@dataclass
class Meter:
    """The buckets of all clients by name. Limits: None: none."""

    clock: Callable[[], float] = time.monotonic
    _buckets: dict[tuple[str, str], Bucket] = field(default_factory=dict)

    def bucket(self, client: str, kind: str, per_minute: int | None) -> Bucket | None:
        """A client's for `requests` or `tokens`; a changed limit begins anew."""
        if per_minute is None:
            return None
        found = self._buckets.get((client, kind))
        if found is None or found.per_minute != per_minute:
            found = self._buckets[client, kind] = Bucket(per_minute, self.clock)
        return found
