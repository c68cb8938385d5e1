"""Beam search: the likeliest texts among several that grow side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from megalm.generate.request import GenerationOptions
from megalm.generate.text import GrowingText, add_token


@dataclass(frozen=True)
class Beam:
    """A text and what it is worth: `score` is the sum of its log-probabilities, once it has ended / length ^ penalty."""

    score: float
    tokens: list[int] = field(default_factory=list)
    text: GrowingText | None = None
    finish_reason: str | None = None


class BeamSearch:
    """The texts of one prompt, without the prompt: those that grow and the best of those that have ended.

    As in Hugging Face's `generate`: of the 2 x beams likeliest continuations of all growing texts those that do not end grow
    on, and those that end count if they are among the first `beams`.
    """

    def __init__(
        self, options: GenerationOptions, limit: int, eod_id: int | None, text: GrowingText | None
    ) -> None:
        """limit: tokens of a text at most. eod_id: the token that ends one. text: the empty one; None without tokenizer."""
        self.options, self.limit, self.eod_id = options, limit, eod_id
        self.growing = [Beam(0.0, text=text)]
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
            if rank >= beams == len(found):
                break
            beam = self._continued(self.growing[parent], score, token)
            if beam.finish_reason is None and len(found) < beams:
                found.append(beam)
                sources.append(parent)
            elif beam.finish_reason is not None and rank < beams:
                self.ended.append(replace(beam, score=self._worth(score, len(beam.tokens))))
        self.ended = sorted(self.ended, key=lambda beam: -beam.score)[:beams]
        self.growing = [] if self._is_over(found) else found
        return sources if self.growing else []

    def _continued(self, beam: Beam, score: float, token: int) -> Beam:
        tokens, text = [*beam.tokens, token], None if beam.text is None else beam.text.copy()
        _, reason = add_token(text, token, self.eod_id, len(tokens) == self.limit)
        return Beam(score, tokens, text, reason)

    def _worth(self, score: float, length: int) -> float:
        return score / length**self.options.length_penalty

    def _is_over(self, growing: list[Beam]) -> bool:
        if len(self.ended) < self.options.beams or not growing:
            return not growing
        best = growing[0]
        return (
            self.options.early_stopping or self._worth(best.score, len(best.tokens)) <= self.ended[-1].score
        )
