"""Prompts as users write them: lines of JSON with a text or messages, in the shapes that instruction data come in."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from megalm.errors import UserError
from megalm.tokenizer.conversations import BadRecord, ChatShape, conversation_of
from megalm.tokenizer.documents import open_input

Messages = list[dict[str, Any]]

# the usual names, so that data of instruction tuning serve as they are
_PROMPT_KEYS = ("messages", "prompt", "question", "query")


class Line(NamedTuple):
    """A line of JSON: its text, the value that it holds, and where it stands."""

    text: bytes
    value: Any
    where: str


def read_json_lines(path: Path, field: str) -> Iterator[Line]:
    """Yield the lines of the file, plain or compressed, that are not empty; UserError, naming `field`, for any that is no JSON."""
    try:
        with open_input(path) as file:
            for number, text in enumerate(
                file, 1
            ):  # lines end at newline bytes alone: texts may hold other separators
                if text.strip():
                    where = f"{field} {path} line {number}"
                    yield Line(text, _value(text, where), where)
    except OSError as error:
        raise UserError(f"{field} {path}: {error.strerror}; name a JSONL file") from None


def _value(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no JSON ({error}); write a prompt a line") from None


def content_of(record: dict[str, Any], where: str) -> tuple[str | Messages, str | None]:
    """What a record asks, a text or messages, and what its assistant answers where its messages end with that.

    Raises UserError for a record that asks nothing.
    """
    content = next((record[key] for key in _PROMPT_KEYS if key in record), None)
    if content is None:
        content = _conversation(record)
    answer = None
    if isinstance(content, list) and content:
        _check_messages(content, where)
        if content[-1]["role"] == "assistant":
            answer, content = content[-1]["content"], content[:-1]
    if not isinstance(content, str) and not (isinstance(content, list) and content):
        raise UserError(
            f"{where}: no text under `prompt` and no list under `messages` (keys {', '.join(record)})"
        )
    return content, answer


def _conversation(record: dict[str, Any]) -> Messages | None:
    """The messages of a record in another of the shapes of instruction data: Alpaca, ShareGPT."""
    try:
        return conversation_of(record, ChatShape()).messages
    except BadRecord:
        return None


def _check_messages(messages: list[Any], where: str) -> None:
    for message in messages:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise UserError(f"{where}: {message!r:.80} is no message; give each a role and a content")
