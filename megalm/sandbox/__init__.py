"""Runs code that a model wrote, with its tests, in processes that can do no harm; imports no torch."""

from megalm.sandbox.run import Limits, Task, Verdict, run_tests, run_tests_of, warn_of_what_is_missing

__all__ = ["Limits", "Task", "Verdict", "run_tests", "run_tests_of", "warn_of_what_is_missing"]
