"""Picks the next tokens on one rank of a copy of the model and tells the others, so that none can go its own way."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from megalm.generate.request import GenerationOptions
from megalm.generate.rows import Request, Row, Token
from megalm.generate.sampling import TokenCounts, adjust_logits, choose
from megalm.parallel.layout import Layout


@dataclass(frozen=True)
class Choice:
    """A row's next token; as far as asked for its log-probability, and the likeliest tokens with theirs."""

    token: int
    logprob: float | None = None
    top: dict[int, float] = field(default_factory=dict)


Continuations: TypeAlias = tuple[list[float], list[int], list[int]]
"""Scores, parents, tokens of the likeliest continuations of a request's beams."""


TOLD_AT_ONCE = 128
"""Places whose log-probabilities, of the whole vocabulary in float64, are held at a time."""


@dataclass(frozen=True)
class ToldPart:
    """A part of a prompt whose tokens' log-probabilities `row`'s request is told: `labels` are predicted at `places` of the pass."""

    row: Row
    places: list[int]
    labels: list[int]


class Chooser:
    """Chooses for all ranks of a copy of the model under `layout`, among the first `vocab_size` tokens."""

    def __init__(self, layout: Layout, vocab_size: int) -> None:
        self.layout, self.vocab_size = layout, vocab_size
        # the first tensor-parallel rank of the last stage: the group's ranks are ordered by stage
        self.source = dist.get_global_rank(layout.groups.mp, (layout.pp_size - 1) * layout.tp_size)
        self.chooses = layout.rank == self.source

    def counts(self, prompt: Sequence[int]) -> TokenCounts | None:
        """A row's counts of tokens, where they are needed."""
        return TokenCounts(prompt, self.vocab_size, self.layout.device) if self.chooses else None

    def choose(
        self, logits_RV: Tensor | None, ready: list[list[Row]]
    ) -> tuple[list[tuple[Row, Choice]], list[tuple[Request, Continuations]]]:
        """The next token of each sampled row, and the likeliest continuations of each request that is searched.

        ready: of each row of logits the rows that go on from it. Collective over the copy's ranks.
        """
        sampled = [
            (number, row) for number, rows in enumerate(ready) for row in rows if not row.request.search
        ]
        searched: dict[int, tuple[Request, list[tuple[int, Row]]]] = {}
        for number, rows in enumerate(ready):
            request = rows[0].request
            if (
                request.search is not None
            ):  # the first step goes on from one row, the others from as many as there are
                searched.setdefault(request.number, (request, []))[1].append((number, rows[0]))
        size = sum(1 + 2 * _logprobs(row) for _, row in sampled)
        size += sum(2 * request.search.candidates for request, _ in searched.values() if request.search)
        numbers: list[float] = []
        if self.chooses:
            assert logits_RV is not None
            logits_RV = logits_RV[:, : self.vocab_size]
            if logits_RV.dtype != torch.float64:
                logits_RV = logits_RV.float()
            numbers = self._sample(logits_RV, sampled)
            for request, beams in searched.values():
                numbers += self._continue(logits_RV, request, beams)
        rest = iter(self._shared(numbers, size))
        choices = [(row, _read_choice(row, rest)) for _, row in sampled]
        return choices, [(request, self._read(request, rest)) for request, _ in searched.values()]

    def tell(self, logits_RV: Tensor | None, first: int, parts: list[ToldPart]) -> None:
        """Give rows the log-probabilities of what `parts` name; their logits are those from number `first` on.

        Collective over the copy's ranks.
        """
        labels = [(label, part.row) for part in parts for label in part.labels]
        if not labels:
            return
        counts = [row.request.options.prompt_logprobs or 0 for _, row in labels]
        numbers: list[float] = []
        if self.chooses:
            assert logits_RV is not None
            for start in range(0, len(labels), TOLD_AT_ONCE):
                some = slice(start, start + TOLD_AT_ONCE)
                raw_TV = logits_RV[first:][some, : self.vocab_size].double()
                for logprobs_V, (label, _), count in zip(
                    raw_TV.log_softmax(-1), labels[some], counts[some], strict=True
                ):
                    values, tokens = logprobs_V.topk(count)
                    numbers += [float(logprobs_V[label]), *values.tolist(), *tokens.tolist()]
        numbers = self._shared(numbers, sum(1 + 2 * count for count in counts))
        rest = iter(numbers)
        for (label, row), count in zip(labels, counts, strict=True):
            logprob = next(rest)
            row.request.told.append(Token(label, logprob, _read_top(count, rest)))

    def _shared(self, numbers: list[float], size: int) -> list[float]:
        """Those of the rank that chooses, `size` of them, on all ranks."""
        if self.layout.tp_size * self.layout.pp_size == 1:
            return numbers
        told = torch.tensor(numbers or [0.0] * size, dtype=torch.float64, device=self.layout.device)
        dist.broadcast(told, self.source, group=self.layout.groups.mp)
        return told.tolist()

    def _sample(self, logits_RV: Tensor, sampled: list[tuple[int, Row]]) -> list[float]:
        """Of each row its token and what `_read_choice` expects behind it."""
        if not sampled:
            return []
        places = [number for number, _ in sampled]
        raw_BV = logits_RV if places == list(range(len(logits_RV))) else logits_RV[places]
        shaped_BV, options = raw_BV, [row.request.options for _, row in sampled]
        if any(one.logit_bias or one.counts_tokens for one in options):
            shaped_BV = torch.stack(
                [
                    adjust_logits(logits_V, one, row.counts)
                    for logits_V, one, (_, row) in zip(raw_BV, options, sampled, strict=True)
                ]
            )
        names, steps = [row.name for _, row in sampled], [row.steps for _, row in sampled]
        tokens = choose(shaped_BV, options, names, steps).tolist()
        wanted = [place for place, (_, row) in enumerate(sampled) if _logprobs(row)]
        logprobs = iter(_logprobs_of(raw_BV[wanted], [options[place] for place in wanted]))
        numbers: list[float] = []
        for token, (_, row) in zip(tokens, sampled, strict=True):
            numbers.append(token)
            if count := _logprobs(row):
                logprobs_V = next(logprobs)
                values, indices = logprobs_V.topk(count - 1)
                numbers += [float(logprobs_V[token]), 0.0, *values.tolist(), *indices.tolist()]
        return numbers

    def _continue(self, logits_RV: Tensor, request: Request, beams: list[tuple[int, Row]]) -> list[float]:
        """Scores of the likeliest continuations, then parent x vocabulary + token of each."""
        search = request.search
        assert search is not None
        options = request.options
        totals = [
            adjust_logits(logits_RV[number].log_softmax(-1), options, row.counts) + beam.score
            for (number, row), beam in zip(beams, search.growing, strict=False)
        ]
        scores, places = torch.cat(totals).topk(search.candidates)
        return [*scores.tolist(), *places.tolist()]

    def _read(self, request: Request, numbers: Iterator[float]) -> Continuations:
        assert request.search is not None
        scores, places = ([next(numbers) for _ in range(request.search.candidates)] for _ in "ab")
        return (
            scores,
            [int(place) // self.vocab_size for place in places],
            [int(place) % self.vocab_size for place in places],
        )


def _logprobs_of(raw_BV: Tensor, options: list[GenerationOptions]) -> Tensor:
    """Log-probabilities of all tokens, float64, each row at its own temperature where its options ask for that."""
    divisors = [one.temperature if one.logprobs_at_temperature else 1.0 for one in options]
    return (raw_BV.double() / torch.tensor(divisors, device=raw_BV.device)[:, None]).log_softmax(-1)


def _logprobs(row: Row) -> int:
    """Pairs of numbers that go with a row's token: its own log-probability and those of the likeliest tokens."""
    wanted = row.request.options.logprobs
    return 0 if wanted is None else 1 + wanted


def _read_choice(row: Row, numbers: Iterator[float]) -> Choice:
    token = int(next(numbers))
    count = _logprobs(row)
    if not count:
        return Choice(token)
    logprob, _ = next(numbers), next(numbers)
    return Choice(token, logprob, _read_top(count - 1, numbers))


def _read_top(count: int, numbers: Iterator[float]) -> dict[int, float]:
    """The likeliest tokens with their log-probabilities: first all of these, then all of the tokens."""
    values, tokens = ([next(numbers) for _ in range(count)] for _ in "ab")
    return {int(one): value for one, value in zip(tokens, values, strict=True)}
