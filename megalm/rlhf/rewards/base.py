"""What a reward is given and gives."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from megalm import progress


@dataclass(frozen=True)
class Sample:
    """A prompt and what the model answered.

    prompt: its text as the model saw it. response: the answer's text without what ended it. record: the line of the prompt
    set, with reference answers, tests and the like. finish_reason: `stop` or `length`. prompt_tokens, response_tokens: ids,
    the response's with the token that ended it.
    """

    prompt: str
    response: str
    record: Mapping[str, Any] = field(default_factory=dict)
    finish_reason: str = "stop"
    prompt_tokens: Sequence[int] = ()
    response_tokens: Sequence[int] = ()


class Reward(Protocol):
    """Judges answers."""

    def check(self, record: Mapping[str, Any]) -> None:
        """Raise UserError for the record of a prompt whose answers it could not judge."""

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """A finite number for each sample, more for a better answer."""


class Rule(ABC):
    """A reward that judges each sample by itself, and any prompt's."""

    def check(self, record: Mapping[str, Any]) -> None:  # noqa: B027  most judge any
        """See Reward."""

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """See Reward."""
        values = []
        for sample in samples:
            progress.beat()
            values.append(float(self.judge(sample)))
        return values

    @abstractmethod
    def judge(self, sample: Sample) -> float:
        """The reward of one sample."""
