"""A model as evaluation asks it: for likelihoods of texts and for texts; what it has answered it is not asked again."""

from collections.abc import Callable, Sequence
from typing import Protocol

from megalm.evaluate.answers import Answer, Answers
from megalm.evaluate.encode import Encoder, Ids, Likelihood, Pair
from megalm.generate.request import GenerationOptions

Advance = Callable[[int], object]
Found = list[tuple[int, Likelihood]]
"""Answers with the numbers of their questions."""


class Source(Protocol):
    """Where answers come from. length: tokens of its context. rank: of this process. texts_at_once: prompts that it is best given together."""

    length: int
    rank: int
    texts_at_once: int

    def likelihoods(self, pairs: Sequence[Pair], found: Callable[[Found], None]) -> None:
        """Tell `found` the likelihood of each pair, some at a time; of pairs beyond the context the beginning is left out. Collective."""

    def texts(
        self, prompts: Sequence[Ids], options: GenerationOptions, numbers: Sequence[int]
    ) -> list[list[str]]:
        """The `options.n` texts with which each prompt is continued; `numbers` set their draws apart. Collective."""


class AskedModel:
    """All ranks make the same calls, and all know the answers. asked, known: questions so far, and those answered before."""

    def __init__(self, source: Source, encoder: Encoder, answers: Answers) -> None:
        self.source, self.encoder, self.answers = source, encoder, answers
        self.asked = self.known = 0

    @property
    def rank(self) -> int:
        """Of this process."""
        return self.source.rank

    @property
    def length(self) -> int:
        """Tokens of the model's context."""
        return self.source.length

    def likelihoods(self, pairs: Sequence[Pair], advance: Advance = lambda amount: None) -> list[Likelihood]:
        """Of each pair. Where it is longer than the model's context, its beginning is left out. Collective."""
        keys = [self.answers.key("likelihood", *pair) for pair in pairs]
        new = self._new(keys, advance)

        def keep(found: Found) -> None:
            self.answers.add({keys[new[number]]: list(likelihood) for number, likelihood in found})
            advance(len(found))

        asked = [pairs[number] for number in new]
        self.source.likelihoods(asked, keep)
        return [Likelihood(*self._answer(key)) for key in keys]

    def texts(
        self,
        prompts: Sequence[Ids],
        options: GenerationOptions,
        numbers: Sequence[int],
        advance: Advance = lambda amount: None,
    ) -> list[list[str]]:
        """The `options.n` texts with which each prompt is continued; `numbers` set their draws apart. Collective.

        Prompts lose their beginning where they leave no room for an answer (see `room`).
        """
        room = self.room(options.max_new_tokens)
        cut = [prompt[-room:] for prompt in prompts]
        told = vars(options)
        keys = [
            self.answers.key("text", prompt, told, 0 if options.greedy else number)
            for prompt, number in zip(cut, numbers, strict=True)
        ]
        new = self._new(keys, advance)
        size = self.source.texts_at_once
        for start in range(0, len(new), size):
            part = new[start : start + size]
            written = self.source.texts([cut[i] for i in part], options, [numbers[i] for i in part])
            self.answers.add(dict(zip((keys[i] for i in part), written, strict=True)))
            advance(len(part))
        return [self._answer(key) for key in keys]

    def room(self, max_new_tokens: int) -> int:
        """Tokens of a prompt beside an answer; answers have half of the context at most for sure."""
        return self.length - min(max_new_tokens, self.length // 2)

    def _new(self, keys: Sequence[str], advance: Advance) -> list[int]:
        """Numbers of the questions that are not answered yet, of those that are alike the first."""
        first: dict[str, int] = {}
        self.asked += len(keys)
        for number, key in enumerate(keys):
            if self.answers.get(key) is None:
                first.setdefault(key, number)
            else:
                self.known += 1
        advance(len(keys) - len(first))
        return list(first.values())

    def _answer(self, key: str) -> Answer:
        answer = self.answers.get(key)
        assert answer is not None
        return answer
