"""Chat logs, and question and answer pairs, rendered as text through a template."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

from datatrove.data import Document
from pydantic import Field

from megalm.corpus.sources.base import InputFile, Part, Source, read_lines, read_whole
from megalm.corpus.sources.table import parse_lines
from megalm.corpus.sources.text import cut_lines
from megalm.tokenizer.conversations import BadRecord, parse_message

_KEY = re.compile(r"\{(\w+)\}")


class Chat(Source):
    """JSON or JSON lines of conversations, or of flat records such as questions with answers.

    A conversation is a list of messages under `messages_key`, each with a role (`role` or `from`) and a text
    (`content` or `value`). A record without it is rendered through `template`.
    """

    kind: Literal["chat"] = Field("chat", description="What the files are.")
    messages_key: str = Field(
        "messages", description="Key of the list of messages (ShareGPT: conversations)."
    )
    turn: str = Field("{role}: {content}\n", description="How a message is rendered.")
    roles: dict[str, str] = Field(
        {"system": "System", "user": "User", "assistant": "Assistant"},
        description="What stands for a role; others keep their name. human and gpt count as user and assistant, as do the "
        "other names that `megalm dataset build --chat` knows.",
    )
    template: str = Field(
        "Question: {question}\nAnswer: {answer}",
        description="How a flat record is rendered; {name} stands for its value of that name.",
    )
    suffixes = (".jsonl", ".ndjson", ".json")

    def cut(self, number: int, file: InputFile, size: int) -> list[Part]:
        """Ranges of bytes of plain JSON lines."""
        if file.path.endswith(".json"):
            return super().cut(number, file, size)
        return cut_lines(number, file, size)

    def read(self, part: Part, counters: Counter[str]) -> Iterator[Document]:
        """Yield the text of each conversation or record."""
        for place, value in self._values(part, counters):
            text = self.render(value)
            if text is None:
                counters["broken"] += 1
            else:
                yield self.document(part.file, place, text, {"path": part.file.name})

    def render(self, value: Any) -> str | None:
        """The text of a conversation or record; None for what is neither."""
        if not isinstance(value, dict):
            return None
        messages = value.get(self.messages_key)
        if isinstance(messages, list):
            turns = [self._turn(message) for message in messages]
            return "".join(turn for turn in turns if turn).strip() if all(turns) and turns else None
        if not all(isinstance(value.get(key), str | int | float) for key in _KEY.findall(self.template)):
            return None
        return _fill(self.template, value).strip() or None

    def _turn(self, message: Any) -> str | None:
        try:
            parsed = parse_message(message)
        except BadRecord:
            return None
        if "tool_calls" in parsed:
            return None
        role = parsed["role"]
        return _fill(self.turn, {"role": self.roles.get(role, role), "content": parsed["content"]})

    def _values(self, part: Part, counters: Counter[str]) -> Iterator[tuple[int, Any]]:
        path = part.file.path
        if not path.removesuffix(".gz").removesuffix(".zst").endswith(".json"):
            lines = read_lines(path, part.start, part.stop, self.max_document_bytes, counters)
            yield from parse_lines(lines, counters)
            return
        data = read_whole(path, self.max_document_bytes, counters)
        if data is not None:
            for _, value in parse_lines([(0, data)], counters):
                yield from enumerate(value if isinstance(value, list) else [value])


def _fill(template: str, values: dict[str, Any]) -> str:
    return _KEY.sub(lambda match: str(values.get(match[1], match[0])), template)
