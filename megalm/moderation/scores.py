"""Scores a growing text with a classifier, at the end of each sentence and line."""

import re

from megalm.corpus.classify.model import Classifier
from megalm.corpus.words import Split
from megalm.moderation.window import Hit, Scan, Window

SHORTEST, LONGEST = 20, 400
"""Characters before which a sentence or line is not scored by itself, and after which it is though it has not ended."""
BLOCK = 500
"""Sentences are scored together with those before them, up to so many characters."""

_END = re.compile(r"[.!?…][\"'”’»)\]]{0,4}\s|[。！？]|\n")


class ScoredLabel:
    """A label of a classifier, and the score from which on it counts as found."""

    def __init__(
        self, classifier: Classifier, label: str | None, threshold: float | None, category: str, mask: str
    ) -> None:
        """label: as `Classifier.choose_label` has it. threshold: None: the classifier's own."""
        self.classifier, self.label = classifier, classifier.choose_label(label)
        stored = classifier.description.thresholds[self.label]
        self.threshold = stored if threshold is None else threshold
        self.category, self.mask = category, mask


class ScoreScan(Scan):
    """Scores one text. A sentence is settled when it has ended."""

    def __init__(self, scored: ScoredLabel) -> None:
        self.scored = scored
        self._block = 0
        self._best = 0.0

    def feed(self, window: Window, final: bool) -> list[Hit]:
        """As `Scan`."""
        hits = []
        while self.settled < window.end:
            ahead = window.slice(self.settled, self.settled + LONGEST)
            if ended := _END.search(ahead, SHORTEST):
                end = self.settled + ended.end()
            elif final or len(ahead) == LONGEST:
                end = self.settled + len(ahead)
            else:
                break
            score = self._score(window.slice(self._block, end))
            self._best = max(self._best, score)
            if score >= self.scored.threshold:
                hits.append(Hit(self.settled, end, self.scored.category, self.scored.mask, score))
            self.settled = end
            if end - self._block >= BLOCK:
                self._block = end
        return hits

    def scores(self) -> dict[str, float]:
        """As `Scan`."""
        return {self.scored.category: self._best}

    def _score(self, text: str) -> float:
        tokens = Split(text).tokens
        return self.scored.classifier.score(tokens, self.scored.label) if tokens else 0.0
