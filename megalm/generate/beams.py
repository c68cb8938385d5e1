"""Beam search: the likeliest texts among several that grow side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from megalm.generate.request import GenerationOptions

LIMIT = "length"


@dataclass(frozen=True)
class Beam:
    """A text and what it is worth: `score` is the sum of its log-probabilities, once it has ended / length ^ penalty."""

    score: float
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None


class BeamSearch:
    """The texts of one prompt, without the prompt: those that grow and the best of those that have ended.

    As in Hugging Face's `generate`: of the 2 x beams likeliest continuations of all growing texts those that do not end grow
    on, and those that end count if they are among the first `beams`.
    """

    def __init__(
        self, options: GenerationOptions, limit: int, ends: Callable[[list[int]], str | None]
    ) -> None:
        """limit: tokens of a text at most. ends: why a text ends where it ends before, else None."""
        self.options, self.limit, self.ends = options, limit, ends
        self.growing = [Beam(0.0)]
        self.ended: list[Beam] = []

    @property
    def candidates(self) -> int:
        """How many continuations `advance` wants: twice the beams, so that enough of them do not end."""
        return 2 * self.options.beams

    def advance(self, scores: Sequence[float], parents: Sequence[int], tokens: Sequence[int]) -> list[int]:
        """Take the likeliest continuations, the best first; for each text that now grows the number of the one it grew from.

        scores: sums of log-probabilities. parents: numbers among `growing`. Nothing grows any more when the search is over.
        """
        beams = self.options.beams
        found: list[Beam] = []
        sources: list[int] = []
        for rank, (score, parent, token) in enumerate(zip(scores, parents, tokens, strict=True)):
            text = [*self.growing[parent].tokens, token]
            reason = self.ends(text) or (LIMIT if len(text) == self.limit else None)
            if reason is None and len(found) < beams:
                found.append(Beam(score, text))
                sources.append(parent)
            elif reason is not None and rank < beams:
                self.ended.append(Beam(self._worth(score, len(text)), text, reason))
        self.ended = sorted(self.ended, key=lambda beam: -beam.score)[:beams]
        self.growing = [] if self._is_over(found) else found
        return sources if self.growing else []

    def _worth(self, score: float, length: int) -> float:
        return score / length**self.options.length_penalty

    def _is_over(self, growing: list[Beam]) -> bool:
        if len(self.ended) < self.options.beams or not growing:
            return not growing
        best = growing[0]
        return (
            self.options.early_stopping or self._worth(best.score, len(best.tokens)) <= self.ended[-1].score
        )
