"""Records to train on, in the shapes that `megalm dataset build --chat` and `build-preferences` read."""

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from itertools import islice
from typing import Any, Literal, get_args

from megalm.dataset.preference_records import key_of
from megalm.feedback.material import Judged, Material
from megalm.feedback.votes import Case, Cases, Opinion, Tally
from megalm.splits import hash64

Form = Literal["sft", "preference", "kto"]
FORMS: tuple[Form, ...] = get_args(Form)
PAIRS_OF_A_PROMPT = 16
"""Pairs of an answer that was rated up and one rated down, at most, of a prompt: a greeting must not outweigh all else."""
_FILTERED = "content_filter"
"""Finish reason of answers whose words are the filter's, not a model's."""


def records_of(
    form: Form,
    material: Material,
    numbers: Iterable[int],
    tally: Tally,
    with_cut: bool = False,
    known: Container[object] = (),
    with_groups: bool = False,
) -> list[dict[str, Any]]:
    """The records that the answers `numbers` give.

    with_cut: answers that max_tokens cut off may be learned, too. known: keys of prompts that are left out. with_groups: pairs
    tell by hashes which of them are one owner's and of one conversation.
    """
    whole = ("stop", "length") if with_cut else ("stop",)
    judged = {number: material.judged[number] for number in numbers}
    cases = Cases(tally, known)
    if form == "preference":
        for opinion in _pairs(material, judged, whole, tally):
            cases.take(opinion)
        return [_pair(case) | (_group(case) if with_groups else {}) for case in cases.decided()]
    for opinion in (*_edits(judged), *_ratings(judged, whole, tally, edits_win=form == "sft")):
        cases.take(opinion)
    if form == "kto":
        return [_verdict(case) for case in cases.decided()]
    return [_example(case) for case in cases.decided(liked_only=True)]


def _edits(judged: dict[int, Judged]) -> Iterator[Opinion]:
    for one in judged.values():
        if one.edit is not None:
            yield Opinion(one.messages, (one.edit,), 1, "edits", (True,), (one.model,), one.source)


def _ratings(
    judged: dict[int, Judged], whole: tuple[str, ...], tally: Tally, edits_win: bool = False
) -> Iterator[Opinion]:
    """edits_win: an answer that its reader edited is not good enough any more."""
    for one in judged.values():
        if one.rating is None:
            continue
        if one.finish_reason == _FILTERED:
            tally.dropped["filtered"] += 1
        elif edits_win and one.edit is not None and one.rating > 0:
            tally.dropped["edited"] += 1
        else:
            ends = one.finish_reason in whole
            yield Opinion(
                one.messages, (one.content,), one.rating, "ratings", (ends,), (one.model,), one.source
            )


def _pairs(
    material: Material, judged: dict[int, Judged], whole: tuple[str, ...], tally: Tally
) -> Iterator[Opinion]:
    """Of two answers: from comparisons, edits, and what was rated up and down of the same prompt."""
    for first, second, pick in material.comparisons:
        if first not in judged or second not in judged:
            tally.dropped["split_apart"] += first in judged  # of two conversations: told on one side
        elif pick in ("tie", "neither"):
            tally.dropped[pick] += 1
        elif _FILTERED in (judged[first].finish_reason, judged[second].finish_reason):
            tally.dropped["filtered"] += 1
        else:
            a, b = judged[first], judged[second]
            ends = (a.finish_reason in whole, b.finish_reason in whole)
            value = 1 if pick == "a" else -1
            both = (a.content, b.content)
            models = (a.model, b.model)
            yield Opinion(a.messages, both, value, "comparisons", ends, models, a.source)
    for one in judged.values():
        if one.edit is not None and one.finish_reason == _FILTERED:
            tally.dropped["filtered"] += 1
        elif one.edit is not None:
            both = (one.edit, one.content)
            yield Opinion(one.messages, both, 1, "edits", (True, True), (one.model,), one.source)
    yield from _rated_pairs(judged, whole, tally)


def _rated_pairs(judged: dict[int, Judged], whole: tuple[str, ...], tally: Tally) -> Iterator[Opinion]:
    """An answer that most liked against one that most did not, of the same prompt."""
    single = Cases(Tally())
    for opinion in _ratings(judged, whole, tally):
        single.take(opinion)
    by_prompt: dict[object, tuple[list[Case], list[Case]]] = defaultdict(lambda: ([], []))
    for case in single.decided():
        by_prompt[key_of(case.messages)][case.label < 0].append(case)
    tally.dropped += single.tally.dropped
    for up, down in by_prompt.values():
        count = len(up) * len(down)
        tally.dropped["pairs_beyond_limit"] += max(0, count - PAIRS_OF_A_PROMPT)
        tally.dropped["unpaired"] += 0 if count else len(up) + len(down)
        for good, bad in islice(_diagonals(up, down), PAIRS_OF_A_PROMPT):
            answers = (good.answers[0], bad.answers[0])
            models = (*good.votes[0][1].models, *bad.votes[0][1].models)
            yield Opinion(good.messages, answers, 1, "ratings", (True, True), models, good.of)


def _diagonals(up: list[Case], down: list[Case]) -> Iterator[tuple[Case, Case]]:
    """All pairs, each once, so that the first ones have as many different answers as there are."""
    for shift in range(min(len(up), len(down))):
        for place in range(max(len(up), len(down))):
            if len(up) >= len(down):
                yield up[place], down[(place + shift) % len(down)]
            else:
                yield up[(place + shift) % len(up)], down[place]


def _example(case: Case) -> dict[str, Any]:
    """What the assistant said before is there to be read, not to be learned: it may have been bad."""
    before = [
        {**message, "weight": 0} if message["role"] == "assistant" else message for message in case.messages
    ]
    return {"messages": [*before, {"role": "assistant", "content": case.answers[0]}]}


def _pair(case: Case) -> dict[str, Any]:
    chosen, rejected = case.ordered
    return {"prompt": case.messages, "chosen": chosen, "rejected": rejected}


def _group(case: Case) -> dict[str, Any]:
    """What one person says in one conversation is not said independently: whoever judges by pairs has to know."""
    return {"owner": _hash("owner", *case.of[:2]), "conversation": _hash("conversation", *case.of)}


def _hash(*parts: str) -> str:
    name = "\0".join(parts)
    return f"{hash64(name.encode()):016x}"


def _verdict(case: Case) -> dict[str, Any]:
    return {"prompt": case.messages, "completion": case.answers[0], "label": case.label > 0}
