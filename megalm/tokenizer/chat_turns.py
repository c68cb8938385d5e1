"""Messages as tracked texts, and which characters the assistant says under a template that does not mark them."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from megalm.errors import UserError
from megalm.tokenizer.chat_ids import Match, SpecialEncoder
from megalm.tokenizer.tracked import Tracked, whole

ASSISTANT = "assistant"
OF_THE_CALL = -1
"""Source of what tools and documents say; a message's is its number."""

Message = Mapping[str, Any]
# Templates make special tokens of roles: `'<|' + message.role + '|>'`.
_PLAIN_ROLE = re.compile(r"[\w -]+")


def tracked_messages(messages: Sequence[Message], specials: SpecialEncoder) -> list[dict[str, Any]]:
    """`messages` as a template may see them: their texts tracked, values of None left out.

    A role of letters, digits, `_`, `-` and spaces is the template's own text. Raises UserError for what is no
    list of messages.
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise UserError("there are no messages; give a list of objects with role and content")
    return [_tracked_message(message, i, specials) for i, message in enumerate(messages)]


def tracked_values(values: Sequence[Any] | None, what: str) -> list[Any] | None:
    """`values` (tools, documents) with their texts tracked; None stays None."""
    if values is None:
        return None
    if isinstance(values, (str, Mapping)) or not all(isinstance(value, Mapping) for value in values):
        raise UserError(
            f"{what} are a {type(values).__name__} of other things than objects; give a list of objects"
        )
    return [_tracked(value, OF_THE_CALL, what) for value in values]


def _tracked_message(message: Message, number: int, specials: SpecialEncoder) -> dict[str, Any]:
    what = f"message {number + 1}"
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UserError(f"{what} is {str(message)[:80]!r}; it must be an object with a role, such as user")
    kept = {key: value for key, value in message.items() if value is not None}
    made = _tracked(kept, number, what)
    role = str.__str__(message["role"])
    if _PLAIN_ROLE.fullmatch(role) and not specials.find(role):
        made["role"] = role
    return made


def _tracked(value: Any, source: int, what: str) -> Any:
    if isinstance(value, str):
        return whole(str.__str__(value), [source])
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {_tracked(key, source, what): _tracked(entry, source, what) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_tracked(entry, source, what) for entry in value]
    raise UserError(f"{what} holds a {type(value).__name__}; only what JSON knows can be written")


class Turns:
    """What the assistant says in a chat, by where the characters of its messages came to stand."""

    def __init__(
        self,
        messages: Sequence[dict[str, Any]],
        render: Callable[[Sequence[Any], bool], str],
        meant: Callable[[str], list[Match]],
    ) -> None:
        """render: the text of some first messages, with or without generation prompt; meant: its special tokens."""
        self._messages = messages
        self._render = render
        self._meant = meant
        self._spoken_by = [i for i, message in enumerate(messages) if message["role"] == ASSISTANT]

    def spoken(self, text: str, add_generation_prompt: bool) -> list[Match]:
        """Characters [start, stop) of each turn, up to and with the special token that ends it."""
        if not self._spoken_by:
            return []
        end_token = self._end_token(text, add_generation_prompt)
        meant = self._meant(text)
        turns = []
        for number in self._spoken_by:
            turn = self._without_end(text, number)
            if turn is None:
                continue
            start, stop = turn
            limit = min(
                (a for a, _, source in _spans(text) if source > number and a >= stop), default=len(text)
            )
            ends = (b for a, b in meant if stop <= a and b <= limit and text[a:b] == end_token)
            stop = next(ends, stop)
            turns.append((start, stop))
        return turns

    def _without_end(self, text: str, number: int) -> Match | None:
        """Where message `number` stands; None for an empty one of which nothing shows that."""
        own = _of(text, number)
        prompt_end = self._prompt_end(text, number, own)
        if prompt_end is None:
            return own
        return prompt_end, own[1] if own else prompt_end

    def _end_token(self, text: str, add_generation_prompt: bool) -> str | None:
        """The special token that the template writes after the assistant's last message where the chat ends there.

        A message with more than content, such as calls of tools, may end with special tokens of its own: for it, a plain
        one is written.
        """
        last = self._spoken_by[-1]
        message, plain = self._messages[last], self._is_plain(last)
        if not plain:
            message = {"role": ASSISTANT, "content": whole("x", [last])}
        if not plain or add_generation_prompt or last + 1 < len(self._messages):
            try:
                text = self._render([*self._messages[:last], message], False)
            except UserError:
                return None
        turn = self._without_end(text, last) if plain else _of(text, last)
        closing = next((match for match in self._meant(text) if turn and match[0] >= turn[1]), None)
        return str.__str__(text[slice(*closing)]) if closing else None

    def _is_plain(self, number: int) -> bool:
        """Whether message `number` has nothing but role and content."""
        return set(self._messages[number]) <= {"role", "content"}

    def _prompt_end(self, text: str, number: int, own: Match | None) -> int | None:
        """Where the generation prompt of the turn ends; None where the template shows none, or it is not needed."""
        if (own is not None and self._is_plain(number)) or number == 0:
            return None
        try:
            before, prompt = (self._render(self._messages[:number], ask) for ask in (False, True))
        except UserError:
            return None
        fits = before != prompt and text.startswith(prompt) and (own is None or len(prompt) <= own[0])
        return len(prompt) if fits else None


def _of(text: str, number: int) -> Match | None:
    """From the first to the last character of message `number`."""
    spans = [(a, b) for a, b, source in _spans(text) if source == number]
    return (min(a for a, _ in spans), max(b for _, b in spans)) if spans else None


def _spans(text: str) -> tuple[tuple[int, int, int], ...]:
    return text.spans if isinstance(text, Tracked) else ()
