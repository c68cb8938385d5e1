"""Runs code that a model wrote, with its tests, in processes that can do no harm; imports no torch."""

from megalm.sandbox.run import Limits, Task, Verdict, check_sandbox, run_tests, run_tests_of

__all__ = ["Limits", "Task", "Verdict", "check_sandbox", "run_tests", "run_tests_of"]
