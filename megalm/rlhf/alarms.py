"""Signs that a model learns to please its reward rather than people: it runs away from the reference, or answers grow."""

from typing import Any

from megalm.config.rlhf import AlarmConfig

FIRST_STEPS = 5
"""The mean length of the answers of so many steps is what later ones are compared with."""


class Alarms:
    """Counts the steps in a row in which something is beyond its bound."""

    def __init__(self, config: AlarmConfig) -> None:
        self.config = config
        self.first_lengths: list[float] = []
        self.in_a_row = {"kl": 0, "length": 0}

    def see(self, kl: float | None, length: float) -> str | None:
        """Take note of a step's mean KL and length of answers; a message each time that `patience` steps in a row rang."""
        rings = {"kl": self._kl(kl), "length": self._length(length)}
        messages = []
        for name, message in rings.items():
            self.in_a_row[name] = self.in_a_row[name] + 1 if message else 0
            if message and self.in_a_row[name] % self.config.patience == 0:
                messages.append(f"{message} in {self.in_a_row[name]} steps in a row")
        return "; ".join(messages) or None

    def _kl(self, kl: float | None) -> str | None:
        limit = self.config.max_kl
        if limit is None or kl is None or kl <= limit:
            return None
        return f"alarm: the KL of answers from the reference is {kl:.3g}, above rlhf.alarms.max_kl {limit:g}"

    def _length(self, length: float) -> str | None:
        if len(self.first_lengths) < FIRST_STEPS:
            self.first_lengths.append(length)
            return None
        limit = self.config.max_length_growth
        growth = length / (sum(self.first_lengths) / FIRST_STEPS)
        if limit is None or growth <= limit:
            return None
        return (
            f"alarm: answers are {growth:.3g} times as long as in the first {FIRST_STEPS} steps, above "
            f"rlhf.alarms.max_length_growth {limit:g}"
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"first_lengths": self.first_lengths, "in_a_row": self.in_a_row}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's state."""
        self.first_lengths, self.in_a_row = list(state["first_lengths"]), dict(state["in_a_row"])
