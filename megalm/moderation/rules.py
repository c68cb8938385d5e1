"""Finds what regular expressions describe, each in bounded time, for texts may be hostile to them."""

import logging
import time

import regex

from megalm.moderation.window import Hit, Scan, Window

logger = logging.getLogger(__name__)

CONTEXT = 64
"""Characters before a place that an expression may look back at."""
SECONDS = 0.1
"""An expression that takes longer on a few dozen characters counts as found there, and is not asked again on this text."""
SECONDS_A_TEXT, SECONDS_A_CHARACTER = 0.5, 1e-6
"""The same for one that takes longer on all of a text than the first, and the second for each of its characters."""


class Rule:
    """A compiled expression. window: the longest match that is sure to be found, in characters."""

    def __init__(self, pattern: str, window: int, ignore_case: bool, category: str, mask: str) -> None:
        self.expression = regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)
        self.window, self.category, self.mask = window, category, mask
        self.step = max(16, window)


class RuleScan(Scan):
    """Looks for a rule in one text, so many characters at a time, each time with the next `window` ones in view."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._spent = 0.0
        self._gave_up = False

    def feed(self, window: Window, final: bool) -> list[Hit]:
        """As `Scan`."""
        hits: list[Hit] = []
        step, more = self.rule.step, self.rule.window
        while self.settled < window.end and (final or self.settled + step + more <= window.end):
            end = min(self.settled + step, window.end)
            if not self._gave_up:
                begin = max(0, self.settled - CONTEXT)
                hits += self._matches(window.slice(begin, self.settled + step + more), begin, end)
            self.settled = end
        return hits

    def _matches(self, text: str, begin: int, end: int) -> list[Hit]:
        rule, hits = self.rule, []
        begun = time.thread_time()
        try:
            for match in rule.expression.finditer(text, self.settled - begin, timeout=SECONDS):
                if begin + match.start() >= end:
                    break
                if match.end() > match.start():
                    hits.append(Hit(begin + match.start(), begin + match.end(), rule.category, rule.mask))
            self._spent += time.thread_time() - begun
            if self._spent > SECONDS_A_TEXT + SECONDS_A_CHARACTER * end:
                raise TimeoutError
        except TimeoutError:
            self._gave_up = True
            logger.warning(
                "%s: the rule %r takes too long on some texts", rule.category, rule.expression.pattern
            )
            hits.append(Hit(self.settled, end, rule.category, rule.mask))
        return hits
