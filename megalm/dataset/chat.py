"""Turns files of conversations into token ids and loss masks; what cannot be learned from is noted, never taken."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from megalm.dataset.indexed import token_dtype
from megalm.dataset.runs import ROW, Documents
from megalm.errors import UserError
from megalm.tokenizer.base import Tokenizer
from megalm.tokenizer.chat import (
    ChatTemplate,
    bundled_templates,
    load_chat_template,
    stored_template,
    template_hash,
)
from megalm.tokenizer.conversations import BadRecord, ChatShape, Conversation, Message, conversation_of
from megalm.tokenizer.load import load_tokenizer
from megalm.tokenizer.records import Broken, Record, read_records

TrainOn = Literal["assistant", "last", "all"]
"""Which tokens count in the loss: what the assistant says, its last turn alone, or every token."""
TooLong = Literal["drop", "cut", "oldest"]
"""What becomes of a sample that is too long: left out; its end lost; its oldest exchanges left out until it fits."""


@dataclass(frozen=True)
class ChatSettings:
    """How conversations become samples: all that determines the result, as values that JSON knows.

    template: the sources of the chat template by name, template_name where it came from, template_hash by which it is told
    from others, variables what it reads beside the messages. max_length: the most tokens of a sample. max_rejected: the
    build is refused where a larger share of the records is left out. For the rest see ChatShape, TrainOn and TooLong.
    """

    template: dict[str, str]
    template_name: str
    template_hash: str
    variables: dict[str, str]
    format: str = "auto"
    messages_key: str | None = None
    prompt_key: str | None = None
    answer_key: str | None = None
    system: str | None = None
    train_on: TrainOn = "assistant"
    max_length: int | None = None
    too_long: TooLong = "drop"
    max_rejected: float = 0.1

    def __post_init__(self) -> None:
        for name, kind in (("train_on", TrainOn), ("too_long", TooLong)):
            if getattr(self, name) not in get_args(kind):
                raise UserError(
                    f"{name} is '{getattr(self, name)}'; choose one of {', '.join(get_args(kind))}"
                )
        if self.max_length is not None and self.max_length < 2:
            raise UserError(f"max_length is {self.max_length}; a sample has at least 2 tokens")
        if self.max_length is None and self.too_long != "drop":
            raise UserError(f"too_long '{self.too_long}' needs max_length: give the run's batch.seq_length")
        if not 0 <= self.max_rejected <= 1:
            raise UserError(f"max_rejected is {self.max_rejected}; give a share from 0 to 1")
        self.shape()

    @classmethod
    def of(
        cls, tokenizer_path: str | Path, template: str | Path | None = None, **options: Any
    ) -> "ChatSettings":
        """Return settings with a bundled template or that of a file, by default the tokenizer's own. UserError where it has
        none.
        """
        tokenizer = load_tokenizer(tokenizer_path)
        if template is None and stored_template(tokenizer_path) is None:
            raise UserError(
                f"the tokenizer {tokenizer_path} has no chat template; name a file with --chat-template, or one of "
                f"{', '.join(bundled_templates())}"
            )
        found = load_chat_template(template or tokenizer_path, tokenizer, config=tokenizer_path)
        name, sources = "tokenizer" if template is None else str(template), found.sources
        return cls(sources, name, template_hash(sources), found.variables, **options)

    def shape(self) -> ChatShape:
        """Return how records are read."""
        keys = self.messages_key, self.prompt_key, self.answer_key
        return ChatShape(self.format, *keys, self.system)  # type: ignore[arg-type]  # checked there


class Sample(NamedTuple):
    """A conversation as ids with its marks, and where it came from."""

    offset: int
    prompt: str
    ids: list[int]
    mask: list[int]
    name: str


class Note(NamedTuple):
    """A record that was left out, or changed (`kept`): where it is, and why."""

    path: str
    line: int
    id: str | int | None
    reason: str
    detail: str
    kept: bool = False


@dataclass
class ChatFile:
    """The samples of one file; `read` and `notes` tell, when all are taken, how many records there were and what was wrong."""

    path: Path
    settings: ChatSettings
    tokenizer: Tokenizer
    id_key: str | None = None
    read: int = 0
    notes: list[Note] = field(default_factory=list)

    def samples(self) -> Iterator[Sample]:
        """Yield what can be learned from, in the order of the file."""
        settings = self.settings
        template = ChatTemplate(settings.template, self.tokenizer, settings.variables, settings.template_name)
        lines_by_id: dict[str | int, int] = {}
        for record in read_records(self.path):
            self.read += 1
            name = self._name(record.value)
            try:
                if name in lines_by_id:
                    raise BadRecord("duplicate_id", f"'{name}' is that of line {lines_by_id[name]}")
                sample = self._sample(record, name, template)
            except BadRecord as error:
                self._note(record, name, error.reason, error.detail)
                continue
            if name is not None:
                lines_by_id[name] = record.line
            yield sample

    def _sample(self, record: Record, name: str | int | None, template: ChatTemplate) -> Sample:
        if isinstance(record.value, Broken):
            raise BadRecord("invalid_json", record.value.problem)
        conversation = conversation_of(record.value, self.settings.shape())
        ids, mask = encode(conversation, template, self.settings.train_on)
        length, limit, done = len(ids), self.settings.max_length, ""
        if limit is not None and length > limit:
            ids, mask, done = self._shorten(conversation, ids, mask, limit, template)
        if not any(mask[1:]):  # the first token is never a label
            raise BadRecord("nothing_counts", "no token of it would count in the loss")
        if done:
            self._note(record, name, self.settings.too_long, f"{length} tokens, {done}", kept=True)
        named = "" if name is None or self.id_key is None else str(name)
        return Sample(record.offset, conversation.prompt, ids, mask, named)

    def _shorten(
        self, conversation: Conversation, ids: list[int], mask: list[int], limit: int, template: ChatTemplate
    ) -> tuple[list[int], list[int], str]:
        """Return ids and mask of at most `limit` tokens, and what was done; raises BadRecord where nothing is left to learn."""
        length, way = len(ids), self.settings.too_long
        if way == "cut" and any(mask[1:limit]):
            return ids[:limit], mask[:limit], f"the first {limit} kept"
        exchanges = 0
        while way == "oldest" and (shorter := without_oldest(conversation)):
            conversation, exchanges = shorter, exchanges + 1
            ids, mask = encode(conversation, template, self.settings.train_on)
            if len(ids) <= limit:
                return ids, mask, f"the first {exchanges} exchanges left out"
        raise BadRecord("too_long", f"{length} tokens, max_length is {limit}")

    def _name(self, value: Any) -> str | int | None:
        found = value.get(self.id_key or "id") if isinstance(value, dict) else None
        return found if isinstance(found, str | int) else None

    def _note(
        self, record: Record, name: str | int | None, reason: str, detail: str, kept: bool = False
    ) -> None:
        self.notes.append(Note(str(self.path), record.line, name, reason, " ".join(detail.split()), kept))


def encode(
    conversation: Conversation, template: ChatTemplate, train_on: TrainOn
) -> tuple[list[int], list[int]]:
    """Return ids and marks of the tokens that count; raises BadRecord where the template does not take the messages."""
    messages = [{k: v for k, v in message.items() if k != "weight"} for message in conversation.messages]
    try:
        ids, mask, _ = template.encode(messages, tools=conversation.tools)
    except UserError as error:
        raise BadRecord("template", str(error)) from error
    if train_on == "all":
        return ids, [1] * len(ids)
    turns = _turns(mask)
    spoken = [message for message in conversation.messages if message["role"] == "assistant"]
    left_out = {n for n, message in enumerate(spoken) if message.get("weight") == 0}
    if left_out and len(turns) != len(spoken):
        raise BadRecord(
            "template", "it does not show which turn is whose, and the record has turns of weight 0"
        )
    if train_on == "last":
        left_out |= set(range(len(turns) - 1))
    for number in left_out:
        start, stop = turns[number]
        mask[start:stop] = [0] * (stop - start)
    return ids, mask


def without_oldest(conversation: Conversation) -> Conversation | None:
    """Return the conversation without its first exchange, the system's message kept; None where there is but one."""
    messages = conversation.messages
    begins = [number for number, message in enumerate(messages) if message["role"] == "user"]
    if len(begins) < 2:
        return None
    system: list[Message] = messages[: begins[0]]
    return replace(conversation, messages=[*system, *messages[begins[1] :]])


def to_documents(
    samples: Sequence[Sample], file_number: int, vocab_size: int, keys_D: NDArray[np.uint64]
) -> Documents:
    """Return samples, under their sort keys, as the runs of a build hold them."""
    names = [sample.name.encode() for sample in samples]
    rows = np.zeros(len(samples), ROW)
    rows["key"] = keys_D
    rows["offset"] = [sample.offset for sample in samples]
    rows["file"] = file_number
    rows["tokens"] = [len(sample.ids) for sample in samples]
    rows["name"] = [len(name) for name in names]
    ids = np.concatenate([np.array(sample.ids, token_dtype(vocab_size)) for sample in samples])
    marks = np.concatenate([np.array(sample.mask, np.uint8) for sample in samples])
    return Documents(rows, ids, marks, np.frombuffer(b"".join(names), np.uint8))


def settings_from(found: Mapping[str, Any] | None) -> ChatSettings | None:
    """Return the settings that JSON holds."""
    return None if found is None else ChatSettings(**found)


def _turns(mask: list[int]) -> list[tuple[int, int]]:
    """Stretches [start, stop) of ones."""
    edges = np.flatnonzero(np.diff(np.array([0, *mask, 0])))
    return [(start, stop) for start, stop in edges.reshape(-1, 2).tolist()]
