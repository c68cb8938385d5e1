"""Conversations in the shapes that instruction data come in: messages, ShareGPT, Alpaca, prompts with completions."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from megalm.errors import UserError

ChatFormat = Literal["auto", "messages", "sharegpt", "alpaca", "prompt"]
Message = dict[str, Any]

KNOWN_ROLES = ("system", "user", "assistant", "tool")
ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "developer": "system",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
}
"""What the roles of other conventions are called in chat templates."""
CALL_ROLE = "function_call"
"""Of an assistant's message whose text is a call of a tool, as JSON."""
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
)
LIST_KEYS = {"messages": "messages", "sharegpt": "conversations"}
KINDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "a truth value",
    type(None): "null",
}
"""What values of JSON are called."""
MAY_FOLLOW = {"": {"user"}, "user": {"assistant"}, "assistant": {"user"}, "tool": {"tool", "assistant"}}


class BadRecord(Exception):
    """A record that nothing can be learned from as it is: `reason`, by which such are counted, and what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class ChatShape:
    """How records become conversations.

    format: the shape, or `auto`, which takes each record for what its keys tell. messages_key: of the list of messages;
    prompt_key, answer_key: of a prompt and its completion; where a key is None the usual names are known. system: the
    system's message of conversations without one.
    """

    format: ChatFormat = "auto"
    messages_key: str | None = None
    prompt_key: str | None = None
    answer_key: str | None = None
    system: str | None = None

    def __post_init__(self) -> None:
        if self.format not in get_args(ChatFormat):
            raise UserError(f"chat format '{self.format}': choose one of {', '.join(get_args(ChatFormat))}")
        pair_key = self.prompt_key or self.answer_key
        if self.messages_key and pair_key:
            raise UserError(
                f"messages_key '{self.messages_key}' and prompt_key or answer_key '{pair_key}': a record has messages or a "
                "pair; leave one out"
            )
        useless = {
            "auto": None,
            "prompt": self.messages_key,
            "alpaca": self.messages_key or pair_key,
        }.get(self.format, pair_key)
        if useless:
            raise UserError(f"chat format '{self.format}' has no key '{useless}' to be named; leave it out")


@dataclass(frozen=True)
class Conversation:
    """Messages as chat templates take them, and the tools that they may call.

    A message has role and content, perhaps tool_calls, and the key weight (0: not to be learned, or 1) where its record had it.
    """

    messages: list[Message]
    tools: list[Any] | None = None

    @property
    def prompt(self) -> str:
        """The user's first text."""
        return next((message["content"] for message in self.messages if message["role"] == "user"), "")


def conversation_of(record: Any, shape: ChatShape) -> Conversation:
    """Return the conversation of a JSON record, well-formed: an optional system's message, then user and assistant in
    turns with texts in all, the assistant last. Raises BadRecord for any other.
    """
    if not isinstance(record, dict):
        raise BadRecord("missing_field", f"{_kind(record)} in place of an object")
    messages = _messages_of(record, shape)
    system = record.get("system") or record.get("system_prompt") or shape.system
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    if messages[0]["role"] == "system" and not messages[0]["content"].strip():
        messages.pop(0)
    check_turns(messages)
    return Conversation(messages, _tools_of(record.get("tools")))


def parse_message(message: Any, number: int = 1) -> Message:
    """Return a message in the names of chat templates: {role, content}, from `role` or `from` and `content` or `value`.

    Roles of other conventions are translated, others kept; a list of text parts becomes one text. Raises BadRecord.
    """
    what = f"message {number}"
    if not isinstance(message, dict):
        raise BadRecord("missing_field", f"{what} is {_kind(message)}")
    role = message.get("role", message.get("from"))
    if not isinstance(role, str):
        raise BadRecord("missing_field", f"{what} has no role (found {_keys(message)})")
    content = message.get("content", message.get("value"))
    calls = message.get("tool_calls")
    spelled = role.strip().lower()
    role = ROLES.get(spelled, spelled if spelled in KNOWN_ROLES else role)
    if spelled == CALL_ROLE:
        role, calls, content = "assistant", _calls(content, what), None
    if content is None and not calls:
        raise BadRecord("missing_field", f"{what} has no text (found {_keys(message)})")
    made = {"role": role, "content": _text(content, what)}
    kept = {key: message[key] for key in ("name", "tool_call_id", "weight") if message.get(key) is not None}
    return made | kept | ({"tool_calls": calls} if calls else {})


def check_turns(messages: list[Message]) -> None:
    """Raise BadRecord unless roles and weights are known and turns come in an order that can be learned, each with a text."""
    before = ""
    for number, message in enumerate(messages, 1):
        role, what = message["role"], f"message {number}"
        if role not in KNOWN_ROLES:
            raise BadRecord("unknown_role", f"{what} is of '{role}'")
        if message.get("weight", 1) not in (0, 1):
            raise BadRecord("unknown_weight", f"{what} has weight {message['weight']!r}, not 0 or 1")
        if role == "system" and number == 1:
            continue
        after = {"tool"} if before == "assistant" and messages[number - 2].get("tool_calls") else set()
        if role not in (after or MAY_FOLLOW[before]):
            raise BadRecord("turn_order", f"{what} of {role} comes after {before or 'the beginning'}")
        if not message["content"].strip() and not message.get("tool_calls") and role != "tool":
            raise BadRecord("empty_answer" if role == "assistant" else "empty_question", f"{what} is empty")
        before = role
    if before != "assistant":
        raise BadRecord("no_answer", f"the last message is of {before or 'the system'}")


def _messages_of(record: Message, shape: ChatShape) -> list[Message]:
    kind = shape.format if shape.format != "auto" else _recognise(record, shape)
    if kind in LIST_KEYS:
        key = shape.messages_key or next(
            (k for k in LIST_KEYS.values() if shape.format == "auto" and isinstance(record.get(k), list)),
            LIST_KEYS[kind],
        )
        return _parse_list(_field(record, key), key)
    if kind == "alpaca":
        return _of_alpaca(record)
    return _of_pair(record, shape)


def _recognise(record: Message, shape: ChatShape) -> ChatFormat:
    """What the keys of `record` tell."""
    if shape.messages_key:
        return "messages"
    if shape.prompt_key or shape.answer_key:
        return "prompt"
    if any(isinstance(record.get(key), list) for key in LIST_KEYS.values()):
        return "messages"
    if "instruction" in record and ("output" in record or "response" in record):
        return "alpaca"
    if _pair(record):
        return "prompt"
    if key := next((key for key in LIST_KEYS.values() if key in record), None):
        raise BadRecord("missing_field", f"{_kind(record[key])} in place of a list under '{key}'")
    raise BadRecord("missing_field", f"no known shape (found {_keys(record)})")


def _of_alpaca(record: Message) -> list[Message]:
    question = _string(record, "instruction")
    if not question.strip():
        raise BadRecord("empty_question", "'instruction' is empty")
    given = record.get("input")
    if given is not None and not isinstance(given, str):
        raise BadRecord("not_text", f"{_kind(given)} under 'input'")
    if given and given.strip():
        question = f"{question}\n\n{given}"
    answer = _string(record, "output" if "output" in record or "response" not in record else "response")
    earlier = record.get("history") or []
    if not isinstance(earlier, list) or not all(
        isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn)
        for turn in earlier
    ):
        raise BadRecord("not_text", "'history' is no list of pairs of texts")
    turns = [*earlier, [question, answer]]
    roles = "user", "assistant"
    return [{"role": role, "content": text} for turn in turns for role, text in zip(roles, turn, strict=True)]


def _of_pair(record: Message, shape: ChatShape) -> list[Message]:
    """A prompt and its completion, texts or (as TRL's data) lists of messages."""
    names = _pair(record) or ("prompt", "completion")
    keys = shape.prompt_key or names[0], shape.answer_key or names[1]
    prompt, answer = (_field(record, key) for key in keys)
    if isinstance(prompt, list) and isinstance(answer, list):
        return _parse_list([*prompt, *answer], " + ".join(keys))
    prompt, answer = (_string(record, key) for key in keys)
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _pair(record: Mapping[str, Any]) -> tuple[str, str] | None:
    return next((pair for pair in PAIRS if pair[0] in record and pair[1] in record), None)


def _parse_list(messages: Any, key: str) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        found = "an empty list" if messages == [] else f"{_kind(messages)}"
        raise BadRecord("missing_field", f"{found} of messages under '{key}'")
    return [parse_message(message, number) for number, message in enumerate(messages, 1)]


def _field(record: Message, key: str) -> Any:
    if record.get(key) is None:
        raise BadRecord("missing_field", f"nothing under '{key}' (found {_keys(record)})")
    return record[key]


def _string(record: Message, key: str) -> str:
    value = _field(record, key)
    if not isinstance(value, str):
        raise BadRecord("not_text", f"{_kind(value)} under '{key}'")
    return value


def _text(content: Any, what: str) -> str:
    if content is None:
        return ""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) == len(parts):
            return "".join(texts)
    if not isinstance(content, str):
        raise BadRecord("not_text", f"{what} holds {_kind(content)} that is no text")
    return content


def _calls(content: Any, what: str) -> list[Any]:
    """The calls that a text of JSON holds, in the form of chat templates."""
    try:
        found = json.loads(content) if isinstance(content, str) else content
    except (ValueError, RecursionError):
        found = None
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, dict) and "name" in call for call in calls):
        raise BadRecord("not_text", f"{what} is no call of a tool as JSON (name and arguments)")
    return [{"type": "function", "function": call} for call in calls]


def _tools_of(tools: Any) -> list[Any] | None:
    """The list of tools, which some data hold as a text."""
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise BadRecord("not_text", "'tools' is a text that is no JSON") from None
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRecord("not_text", f"'tools' is {_kind(tools)}, no list of objects")
    return tools


def _keys(record: Mapping[str, Any]) -> str:
    names = ", ".join(" ".join(str(key).split())[:40] for key in list(record)[:12])
    return f"keys {names}" if names else "no keys"


def _kind(value: Any) -> str:
    """What a value of JSON is called."""
    return KINDS.get(type(value), f"a {type(value).__name__}")
