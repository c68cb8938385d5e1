"""Regular expressions on texts that a model wrote: bounded in time, for both may be hostile."""

import logging
from typing import Any

import regex

logger = logging.getLogger(__name__)

SECONDS = 1.0
"""A match that takes longer counts as none; patterns that do not backtrack without end take microseconds."""


class Pattern:
    """A compiled expression; counts the texts on which it took too long."""

    def __init__(self, text: str) -> None:
        self.expression = regex.compile(text)
        self.timeouts = 0

    def matches(self, text: str, full: bool) -> bool:
        """Whether it matches all of `text`, or else a part of it."""
        match = self.expression.fullmatch if full else self.expression.search
        return self._in_time(lambda: match(text, timeout=SECONDS) is not None) or False

    def last(self, text: str) -> str | None:
        """The first group of its last match, or all of that where it has no group or the group took no part."""

        def find() -> str | None:
            found = None
            for match in self.expression.finditer(text, timeout=SECONDS):
                found = match
            if found is None:
                return None
            group = found[1] if self.expression.groups else None
            return found[0] if group is None else group

        return self._in_time(find)

    def _in_time(self, work: Any) -> Any:
        try:
            return work()
        except TimeoutError:
            self.timeouts += 1
            if self.timeouts == 1:
                logger.warning(
                    "the pattern %r takes over %g s on some responses, which then count as not matching; "
                    "write it without nested repetitions",
                    self.expression.pattern,
                    SECONDS,
                )
            return None
