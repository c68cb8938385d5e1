"""Reads the answers that are to be scored; imports no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from megalm.dataset.preference_records import preference_of
from megalm.errors import UserError
from megalm.tokenizer.conversations import BadRecord, ChatShape, Message, conversation_of
from megalm.tokenizer.records import Broken, read_records


class Scored(NamedTuple):
    """A record: the conversations whose last answers are scored (of a pair the chosen one's, then the rejected one's)."""

    conversations: list[list[Message]]
    is_pair: bool


def read_answers(files: Sequence[Path], prompt: str | None, texts: Sequence[str]) -> list[Scored]:
    """The `texts`, as answers to `prompt`, before the records of JSON or JSONL `files`.

    A record is a pair (chosen, rejected), or a conversation that ends with an answer, in any shape that `dataset build --chat`
    reads. UserError for a record that is neither.
    """
    if texts and not (prompt and prompt.strip()):
        raise UserError("--text is an answer: give the prompt with --prompt")
    found = [
        Scored([[{"role": "user", "content": str(prompt)}, {"role": "assistant", "content": text}]], False)
        for text in texts
    ]
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        for record in read_records(path):
            try:
                found.append(_scored(record.value))
            except BadRecord as error:
                raise UserError(f"{path} line {record.line}: {error}; mend it or leave it out") from None
    return found


def _scored(value: object) -> Scored:
    if isinstance(value, Broken):
        raise BadRecord("invalid_json", value.problem)
    if isinstance(value, dict) and "chosen" in value:
        return Scored([c.messages for c in preference_of(value).conversations()], True)
    return Scored([conversation_of(value, ChatShape()).messages], False)
