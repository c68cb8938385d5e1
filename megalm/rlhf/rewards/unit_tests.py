"""Reward for code that passes the prompt's tests."""

from collections.abc import Mapping, Sequence
from typing import Any

from megalm.config.rewards import UnitTestsConfig
from megalm.errors import UserError
from megalm.evaluate.final_answers import code_of
from megalm.rlhf.rewards.base import Sample
from megalm.sandbox import Limits, Task, check_sandbox, run_tests_of

ENTRY_POINT = "entry_point"
"""Key of the record, where it has it, that names the function which a `check` of the tests is called with."""


class UnitTests:
    """The share of the tests that the response's code passes, or 1 for all and 0 for less.

    Several responses are tested at a time, each test in a sandboxed process of its own.
    """

    def __init__(self, config: UnitTestsConfig) -> None:
        self.config = config
        self.limits = Limits(config.seconds, config.memory_mb << 20)
        check_sandbox()

    def check(self, record: Mapping[str, Any]) -> None:
        """See Reward."""
        self._tests(record)

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """See Reward."""
        tasks = [
            Task(code_of(sample.response), self._tests(sample.record), sample.record.get(ENTRY_POINT))
            for sample in samples
        ]
        results = run_tests_of(tasks, self.limits, self.config.workers)
        shares = [sum(verdict.passed for verdict in verdicts) / len(verdicts) for verdicts in results]
        return [float(share == 1) for share in shares] if self.config.all_or_nothing else shares

    def _tests(self, record: Mapping[str, Any]) -> list[str]:
        value = record.get(self.config.key)
        tests = [value] if isinstance(value, str) else value
        if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
            raise UserError(
                f"reward `{self.config.title}`: the record has {value!r:.60} under '{self.config.key}', and tests in Python "
                "are needed, a text or a list of texts; name the key that holds them"
            )
        if record.get(ENTRY_POINT) is not None and not isinstance(record[ENTRY_POINT], str):
            raise UserError(
                f"reward `{self.config.title}`: '{ENTRY_POINT}' is {record[ENTRY_POINT]!r:.60}; name a function"
            )
        return tests
