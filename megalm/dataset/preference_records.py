"""Reads preferences in the shapes that they come in: pairs of answers, answers with a rating, answers called good or bad."""

import json
import math
import re
from typing import Any, Literal, NamedTuple, get_args

from megalm.errors import UserError
from megalm.tokenizer.conversations import (
    BadRecord,
    Conversation,
    Message,
    check_turns,
    parse_message,
)

Kind = Literal["pairs", "ratings", "verdicts"]
"""What a record holds: a chosen and a rejected answer; an answer and a number; an answer and whether it is wanted."""
KINDS: tuple[Kind, ...] = get_args(Kind)
PROMPT_KEYS = ("prompt", "question", "query")
LIST_KEYS = ("conversations", "messages")
ANSWER_KEYS = ("response", "completion", "answer", "output")
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


class Preference(NamedTuple):
    """A prompt and its answers (of a pair the chosen one, then the rejected one), all of them messages of chat templates.

    value: of a pair by how much the first is better (0: not said), a rating, or 1 and 0 for wanted and unwanted.
    """

    kind: Kind
    prompt: list[Message]
    answers: tuple[Message, ...]
    value: float

    def conversations(self) -> list[Conversation]:
        """The prompt with each answer."""
        return [Conversation([*self.prompt, answer]) for answer in self.answers]

    @property
    def first_text(self) -> str:
        """The user's first text, by which a conversation's split is found everywhere."""
        return self.conversations()[0].prompt

    def key(self, answer: int | None = None) -> str:
        """What is the same in copies of the prompt (or of the prompt with that answer), whatever case and white space."""
        return key_of(self.prompt if answer is None else [*self.prompt, self.answers[answer]])


def key_of(messages: list[Message]) -> str:
    """What is the same in copies of messages, whatever case and white space."""
    return json.dumps(
        [[m["role"], plain(m["content"]), m.get("tool_calls")] for m in messages], sort_keys=True
    )


def plain(text: str) -> str:
    """What is the same in copies of a text."""
    return " ".join(text.casefold().split())


def preference_of(record: Any, system: str | None = None) -> Preference:
    """Return what a JSON record says. Raises BadRecord for one that nothing can be learned from.

    system: the system's text of prompts without one.
    """
    if not isinstance(record, dict):
        raise BadRecord("missing_field", f"{type(record).__name__} in place of an object")
    if "chosen" in record or "rejected" in record:
        kind: Kind = "pairs"
        prompt, answers = _pair(record)
        value = _number(record, "margin") if record.get("margin") is not None else 0.0
    else:
        key = next((key for key in ANSWER_KEYS if record.get(key) is not None), None)
        if key is None or ("rating" not in record and "label" not in record):
            found = ", ".join(map(str, list(record)[:12])) or "none"
            raise BadRecord(
                "missing_field",
                f"neither chosen and rejected nor a response with a rating or a label (found keys {found})",
            )
        kind = "ratings" if "rating" in record else "verdicts"
        prompt, answer = _with_prompt(record, key)
        answers = (answer,)
        value = _number(record, "rating") if kind == "ratings" else _verdict(record)
    system = record.get("system") or record.get("system_prompt") or system
    if isinstance(system, str) and system.strip() and prompt and prompt[0]["role"] != "system":
        prompt = [{"role": "system", "content": system}, *prompt]
    if prompt and prompt[0]["role"] == "system" and not prompt[0]["content"].strip():
        prompt = prompt[1:]
    preference = Preference(kind, prompt, answers, value)
    for conversation in preference.conversations():
        check_turns(conversation.messages)
    if kind == "pairs" and answers[0] == answers[1]:
        raise BadRecord("identical_answers", "chosen and rejected are the same")
    return preference


def one_kind(kinds: dict[Kind, str], where: str = "the inputs") -> Kind:
    """The only one of `kinds`, each with the place where it was found. UserError for several."""
    if len(kinds) > 1:
        places = ", ".join(f"{kind} ({place})" for kind, place in kinds.items())
        raise UserError(
            f"{where} mix kinds of preferences: {places}; give one kind, or build several datasets"
        )
    return next(iter(kinds))


def _pair(record: Message) -> tuple[list[Message], tuple[Message, ...]]:
    """The prompt that both answers share, and the answers."""
    found = [_with_prompt(record, key) for key in ("chosen", "rejected")]
    (prompt, chosen), (other, rejected) = found
    if prompt != other:
        raise BadRecord("different_prompts", "chosen and rejected differ before their last answers")
    return prompt, (chosen, rejected)


def _with_prompt(record: Message, key: str) -> tuple[list[Message], Message]:
    """The prompt and the answer under `key`: a text, a message, a list of messages or a whole dialogue."""
    value = record.get(key)
    if value is None:
        raise BadRecord("missing_field", f"nothing under '{key}'")
    prompt = _prompt(record)
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        messages = [parse_message(message, number) for number, message in enumerate(value, 1)]
        if not messages:
            raise BadRecord("missing_field", f"an empty list under '{key}'")
        whole = messages if messages[0]["role"] != "assistant" else [*(prompt or []), *messages]
    elif not isinstance(value, str):
        raise BadRecord("not_text", f"{type(value).__name__} under '{key}'")
    elif prompt is None:
        whole = dialogue(value)
    else:
        whole = [*prompt, {"role": "assistant", "content": value}]
    if whole[-1]["role"] != "assistant":
        raise BadRecord("no_answer", f"the last message under '{key}' is of {whole[-1]['role']}")
    return whole[:-1], whole[-1]


def _prompt(record: Message) -> list[Message] | None:
    """The messages before the answer, None where the record has them in the answers alone."""
    for key in (*LIST_KEYS, *PROMPT_KEYS):
        value = record.get(key)
        if isinstance(value, list):
            return [parse_message(message, number) for number, message in enumerate(value, 1)]
        if key in PROMPT_KEYS and isinstance(value, str):
            return [{"role": "user", "content": value}]
        if value is not None:
            raise BadRecord("not_text", f"{type(value).__name__} under '{key}'")
    question = record.get("instruction")
    if question is None:
        return None
    given = record.get("input") or ""
    if not isinstance(question, str) or not isinstance(given, str):
        raise BadRecord("not_text", "'instruction' or 'input' is no text")
    if not question.strip():
        raise BadRecord("empty_question", "'instruction' is empty")
    return [{"role": "user", "content": f"{question}\n\n{given}" if given.strip() else question}]


def dialogue(text: str) -> list[Message]:
    """Messages of a text with turns after empty lines, `Human:` and `Assistant:` (arXiv:2204.05862's data).

    Raises BadRecord for any other text.
    """
    before, *parts = _TURN.split("\n\n" + text.lstrip())
    if before.strip() or not parts:
        raise BadRecord(
            "missing_field", "no prompt beside the answers, and no dialogue of Human: and Assistant:"
        )
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": _ROLES[role], "content": content.strip()} for role, content in turns]


def _number(record: Message, key: str) -> float:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRecord("bad_value", f"{value!r} under '{key}' is no number")
    return float(value)


def _verdict(record: Message) -> float:
    value = record.get("label")
    if not isinstance(value, bool | int) or value not in (0, 1):
        raise BadRecord("bad_value", f"{value!r} under 'label' is neither true nor false")
    return float(value)
