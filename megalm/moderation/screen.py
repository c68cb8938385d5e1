"""One text on its way to somebody: what may be shown of it, as far as it is known."""

import heapq
from dataclasses import dataclass

from megalm.moderation.policy import Policy, Side
from megalm.moderation.settings import Action
from megalm.moderation.window import Hit, Window

CONTEXT = 128
"""Characters before a place that scans may look back at."""


@dataclass(frozen=True)
class Finding:
    """Something that a category does not want, at [begin, end) of the text."""

    category: str
    action: Action
    score: float
    begin: int
    end: int


@dataclass(frozen=True)
class Checked:
    """A whole text after the check. text: what may be shown: masked, and nothing from a blocked place on.

    scores: of each category that was looked for. blocked: the category that blocks, if one does.
    """

    text: str
    findings: list[Finding]
    scores: dict[str, float]
    blocked: str | None


class TextScreen:
    """Takes a text as it grows and gives out what may be shown; what is shown does not depend on how the text came in pieces."""

    def __init__(self, policy: Policy, side: Side | None) -> None:
        """side: None: nothing is held back, masked or blocked; all categories are looked for."""
        self.actions = policy.actions(side)
        self.findings: list[Finding] = []
        self.blocked: str | None = None
        self.decided = 0
        """Characters of the text that have been shown, masked or stopped at."""
        self.masked: list[tuple[int, int]] = []
        """Places of the text that were not shown as they are."""
        acting = [name for name, action in self.actions.items() if action != "flag"]
        flagging = [name for name, action in self.actions.items() if action == "flag"]
        self._acting, self._flagging = policy.scans(acting), policy.scans(flagging)
        self._window = Window()
        self._waiting: list[tuple[int, Action, int, Hit]] = []
        """In their order; of those at one place what blocks comes first, then the longest."""

    def feed(self, piece: str, final: bool = False) -> str:
        """What may be shown now that `piece` has come; final: nothing else comes. Nothing is shown once it is blocked."""
        if self.blocked is not None:
            return ""
        self._window.text += piece
        for scan in self._flagging:
            self.findings += map(self._finding, scan.feed(self._window, final))
        for scan in self._acting:
            for hit in scan.feed(self._window, final):
                heapq.heappush(self._waiting, (hit.begin, self.actions[hit.category], -hit.end, hit))
        settled = min((scan.settled for scan in self._acting), default=self._window.end)
        shown = self._show(self._window.end if final else settled)
        looked = min((scan.settled for scan in self._flagging), default=self.decided)
        self._window.forget(min(settled, self.decided, looked) - CONTEXT)
        return shown

    def scores(self) -> dict[str, float]:
        """The highest score of each category so far."""
        found = dict.fromkeys(self.actions, 0.0)
        known = [scan.scores() for scan in (*self._acting, *self._flagging)]
        known += [{finding.category: finding.score} for finding in self.findings]
        for scores in known:
            for category, score in scores.items():
                found[category] = max(found[category], score)
        return found

    def _show(self, settled: int) -> str:
        shown = []
        while self._waiting and self._waiting[0][0] < settled:
            *_, hit = heapq.heappop(self._waiting)
            self.findings.append(self._finding(hit))
            shown.append(self._window.slice(self.decided, hit.begin))
            is_new = hit.begin >= self.decided
            self.decided = max(self.decided, hit.begin)
            if self.actions[hit.category] == "block":
                self.blocked = hit.category
                return "".join(shown)
            if is_new:
                shown.append(hit.mask)
            self.masked.append((hit.begin, hit.end))
            self.decided = max(self.decided, hit.end)
        shown.append(self._window.slice(self.decided, settled))
        self.decided = max(self.decided, settled)
        return "".join(shown)

    def _finding(self, hit: Hit) -> Finding:
        return Finding(hit.category, self.actions[hit.category], hit.score, hit.begin, hit.end)


def check(policy: Policy, text: str, side: Side | None) -> Checked:
    """The whole of a text."""
    screen = TextScreen(policy, side)
    shown = screen.feed(text, final=True)
    findings = sorted(screen.findings, key=lambda finding: (finding.begin, finding.end))
    return Checked(shown, findings, screen.scores(), screen.blocked)
