"""Where a run stands in its data: all that resuming needs."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Cursor:
    """The next sample to train on, and the ranges [start, stop) of samples to pass over."""

    next_sample: int = 0
    skipped: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.skipped = _merged(self.skipped)

    def take(self, count: int) -> NDArray[np.int64]:
        """Return the next `count` sample numbers outside the skipped ranges, and move past them."""
        parts: list[NDArray[np.int64]] = []
        while count > 0:
            start = self._past_skipped(self.next_sample)
            next_skip = min((first for first, _ in self.skipped if first > start), default=start + count)
            stop = min(start + count, next_skip)
            parts.append(np.arange(start, stop, dtype=np.int64))
            count -= stop - start
            self.next_sample = stop
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def skip(self, count: int, start: int | None = None) -> None:
        """Pass over `count` samples from number `start` on (by default the next one)."""
        first = self.next_sample if start is None else start
        if count > 0:
            self.skipped = _merged([*self.skipped, (first, first + count)])

    def to_json(self) -> dict[str, Any]:
        """Return the state as an object that `json` can write."""
        return {"next_sample": self.next_sample, "skipped": [list(pair) for pair in self.skipped]}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "Cursor":
        """Return the cursor that `to_json` described."""
        return cls(int(state["next_sample"]), [(int(start), int(stop)) for start, stop in state["skipped"]])

    def _past_skipped(self, sample: int) -> int:
        for start, stop in self.skipped:  # sorted and apart, so one pass does
            if start <= sample < stop:
                sample = stop
        return sample


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return merged
