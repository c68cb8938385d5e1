"""Which held-out pairs count as one: those that one person, or one conversation, has said what they say."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from megalm.release.pairs import HeldPair

Unit = Literal["owners", "conversations", "prompts"]


@dataclass(frozen=True)
class Grouped:
    """Pairs by what they are of. prompts: of each pair its prompt's number; groups: of each prompt its group's number."""

    unit: Unit
    prompts: list[int]
    groups: list[int]


def grouped(pairs: Sequence[HeldPair], certainty: float) -> Grouped:
    """By their owners; where these are too few, by their conversations; where no pair tells them, by their prompts.

    Turns of a conversation repeat what was said before, and a person has one taste: neither are independent. Owners are too few where
    a sign test could not be certain though the candidate won with all of them (a server that knows its users by one name has one); then
    what is found holds for these people. Fewer conversations never become prompts: they are too few to judge by.
    A prompt of several groups counts in that of its first pair, so that groups have none in common.
    """
    first: dict[str, HeldPair] = {}
    for pair in pairs:
        first.setdefault(pair.prompt, pair)
    numbers = {prompt: number for number, prompt in enumerate(first)}
    prompts = [numbers[pair.prompt] for pair in pairs]
    needed = math.floor(-math.log2(1 - certainty)) + 1
    unit: Unit = "prompts"
    names = [_name(None, prompt) for prompt in first]
    if any(pair.conversation is not None for pair in first.values()):
        unit, names = "conversations", [_name(pair.conversation, prompt) for prompt, pair in first.items()]
    owners = [_name(pair.owner, prompt) for prompt, pair in first.items()]
    if any(pair.owner is not None for pair in first.values()) and len(set(owners)) >= needed:
        unit, names = "owners", owners
    places = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return Grouped(unit, prompts, [places[name] for name in names])


def _name(told: str | None, prompt: str) -> tuple[str, str]:
    """A group's; pairs that do not tell it are told apart by their prompts."""
    return ("told", told) if told is not None else ("prompt", prompt)
