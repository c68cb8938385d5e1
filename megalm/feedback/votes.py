"""Many opinions of the same answers become one: as most said; copies count once, and a draw says nothing."""

from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass, field

from megalm.dataset.preference_records import key_of, plain
from megalm.feedback.material import Message, Model, Source
from megalm.tokenizer.conversations import BadRecord, check_turns


@dataclass
class Tally:
    """What became of opinions: records by the source of their first vote, what was dropped and why, answers by model."""

    sources: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    models: Counter[Model] = field(default_factory=Counter)


@dataclass(frozen=True)
class Opinion:
    """Of one answer that it is good (value 1) or bad (-1), or of two that the first is better (1) or worse (-1).

    whole: whether each answer has an end. models: that wrote them. source: ratings, edits or comparisons. of: whose it is.
    """

    messages: list[Message]
    answers: tuple[str, ...]
    value: int
    source: str
    whole: tuple[bool, ...]
    models: tuple[Model, ...]
    of: Source


@dataclass
class Case:
    """Answers to a prompt, as they were first seen, and what was said of them: with the answers in that order."""

    messages: list[Message]
    answers: tuple[str, ...]
    votes: list[tuple[int, Opinion]] = field(default_factory=list)
    label: int = 0
    """1 or -1, as most said."""

    @property
    def of(self) -> Source:
        """Whose it is: the first one's who said what most said."""
        return next(opinion.of for value, opinion in self.votes if value == self.label)

    @property
    def ordered(self) -> tuple[str, ...]:
        """Of a pair, the better answer first."""
        return self.answers if self.label > 0 else self.answers[::-1]


class Cases:
    """Opinions by what they are of, whatever case and white space."""

    def __init__(self, tally: Tally, known: Container[object] = ()) -> None:
        """known: keys of prompts that are left out."""
        self.tally, self.known = tally, known
        self._found: dict[object, Case] = {}

    def take(self, opinion: Opinion) -> None:
        """Count it, unless nothing can be learned from it."""
        if reason := _flaw(opinion):
            self.tally.dropped[reason] += 1
            return
        keys = tuple(plain(answer) for answer in opinion.answers)
        matter = (key_of(opinion.messages), frozenset(keys))
        case = self._found.setdefault(matter, Case(opinion.messages, opinion.answers))
        is_mirrored = plain(case.answers[0]) != keys[0]
        case.votes.append((-opinion.value if is_mirrored else opinion.value, opinion))

    def decided(self, liked_only: bool = False) -> Iterator[Case]:
        """Those of which more said one thing than the contrary, in the order in which they were first seen.

        liked_only: leave out answers that most did not like.
        """
        for case in self._found.values():
            outcome = sum(value for value, _ in case.votes)
            if outcome == 0:
                self.tally.dropped["contradiction"] += len(case.votes)
                continue
            case.label = 1 if outcome > 0 else -1
            if liked_only and case.label < 0:
                self.tally.dropped["rated_down"] += len(case.votes)
                continue
            if key_of(case.messages) in self.known:
                self.tally.dropped["prompt_in_train"] += len(case.votes)
                continue
            agreeing = [opinion for value, opinion in case.votes if value == case.label]
            self.tally.dropped["outvoted"] += len(case.votes) - len(agreeing)
            self.tally.dropped["copy"] += len(agreeing) - 1
            self.tally.sources[agreeing[0].source] += 1
            self.tally.models.update(agreeing[0].models)
            yield case


def _flaw(opinion: Opinion) -> str | None:
    """Why nothing can be learned from it; what makes conversations unfit are the reasons of `check_turns`."""
    for answer in opinion.answers:
        try:
            check_turns([*opinion.messages, {"role": "assistant", "content": answer}])
        except BadRecord as error:
            return error.reason
    if len({plain(answer) for answer in opinion.answers}) < len(opinion.answers):
        return "identical_answers"
    liked = 0 if opinion.value > 0 else len(opinion.answers) - 1
    is_liked = opinion.value > 0 or len(opinion.answers) > 1
    # An answer that breaks off would teach to break off.
    return "unfinished" if is_liked and not opinion.whole[liked] else None
