"""Prompts to answer: read and encoded once, then a batch is a pure function of (data, seed, position)."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megalm.config.prompts import PromptSource
from megalm.dataset.labelled import LeftOut
from megalm.dataset.order import locate
from megalm.dataset.shares import by_weight
from megalm.errors import UserError
from megalm.tokenizer.base import Tokenizer
from megalm.tokenizer.chat import ChatTemplate
from megalm.train.asked import Messages, content_of, read_json_lines


@dataclass(frozen=True)
class Prompt:
    """What the model answers.

    tokens: ids, ending where the answer begins. text: as the tokens spell it. record: the line of the file, an object.
    number: of the prompt among all of its set, from 0. where: file and line, for messages.
    """

    tokens: list[int]
    text: str
    record: dict[str, Any]
    number: int
    where: str


class PromptWriter:
    """Writes records out as texts and ids."""

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate | None, as_text: bool, max_tokens: int
    ) -> None:
        """template: for messages, and for a text under `prompt` unless `as_text`; None where there are none of either.

        max_tokens: of a prompt.
        """
        self.tokenizer, self.template = tokenizer, template
        self.as_text, self.max_tokens = as_text, max_tokens

    def write(self, record: dict[str, Any], where: str) -> tuple[str, list[int]]:
        """The text and ids of a record; UserError where it asks nothing or the template refuses it."""
        content, _ = content_of(record, where)
        if self.as_text and isinstance(content, str):
            return content, self.tokenizer.encode(content)
        if self.template is None:
            raise UserError(
                f"{where} is a conversation, and there is no chat template: name one in rlhf.chat_template"
                + ("" if self.as_text else ", or set rlhf.prompt_form=text")
            )
        messages: Messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
        if not any(message["content"].strip() for message in messages):
            return "", []
        try:
            encoded = self.template.encode(messages, add_generation_prompt=True)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        return encoded.text, encoded.ids


class PromptSet(Sequence[Prompt]):
    """The prompts of some files, in the files' order, without empty ones, copies and those that are too long."""

    def __init__(self, sources: Sequence[PromptSource], field: str, writer: PromptWriter) -> None:
        """Read and encode them; `field` names `sources` in messages. UserError for what is no prompt, and for none at all.

        Of prompts with equal tokens the first is taken, whichever file the others stand in.
        """
        self.field = field
        self.paths = [source.path for source in sources]
        self.left_out = LeftOut()
        self.counts: list[int] = []
        """Prompts of each file."""
        self._lines: list[bytes] = []
        self._texts: list[str] = []
        self._places: list[str] = []
        self._tokens: list[NDArray[np.int32]] = []
        self._known: set[bytes] = set()
        for source in sources:
            before = len(self)
            for line in read_json_lines(Path(source.path), field):
                self._add(line.text, line.value, line.where, writer)
            self.counts.append(len(self) - before)
            if not self.counts[-1]:
                raise UserError(
                    f"{field} {source.path} has no prompt that can be used{self._reasons()}; name a file that has"
                )

    def _add(self, line: bytes, record: Any, where: str, writer: PromptWriter) -> None:
        if isinstance(record, str):
            record = {"prompt": record}
        if not isinstance(record, dict):
            raise UserError(f"{where}: a text or an object is expected, found {type(record).__name__}")
        text, tokens = writer.write(record, where)
        ids = np.array(tokens, np.int32)
        if not text.strip() or not tokens:
            self.left_out.add("empty", where)
        elif len(tokens) > writer.max_tokens:
            self.left_out.add(f"longer than {writer.max_tokens} tokens", where)
        elif (key := _key(ids)) in self._known:
            self.left_out.add("copy of another", where)
        else:
            self._known.add(key)
            self._lines.append(line)
            self._texts.append(text)
            self._places.append(where)
            self._tokens.append(ids)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, number: Any) -> Any:
        """The prompt of this number, or several."""
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        number = range(len(self))[number]
        record = json.loads(self._lines[number])
        return Prompt(
            self._tokens[number].tolist(),
            self._texts[number],
            {"prompt": record} if isinstance(record, str) else record,
            number,
            self._places[number],
        )

    def notices(self) -> list[str]:
        """A line on what was left out, if anything was."""
        total = self.left_out.rows.total()
        return (
            [f"{self.field}: {total} of {total + len(self)} prompts left out{self._reasons()}"]
            if total
            else []
        )

    def shared_with(self, other: "PromptSet") -> list[Prompt]:
        """Those of these prompts that `other` has as well: what was learned from says little as held out."""
        return [prompt for prompt, ids in zip(self, self._tokens, strict=True) if _key(ids) in other._known]

    def _reasons(self) -> str:
        told = [
            f"{count} {reason} (first: {self.left_out.first[reason][0].removeprefix(f'{self.field} ')})"
            for reason, count in self.left_out.rows.items()
        ]
        return f": {', '.join(told)}" if told else ""


class PromptStream:
    """The prompts of a run one after another, without end: files by their weights, each file's prompts once an epoch.

    Which prompt stands at a position follows from the data, the seed and the position alone, under any layout.
    """

    def __init__(self, prompts: PromptSet, weights: Sequence[float], seed: int) -> None:
        """weights: of the set's files. UserError for weights that are no numbers above 0."""
        self.prompts, self.seed = prompts, seed
        self.shares = by_weight(weights)
        self.windows = np.array(prompts.counts, np.int64)
        self._first = np.cumsum([0, *prompts.counts[:-1]])

    def batch(self, positions: NDArray[np.int64] | Sequence[int]) -> list[Prompt]:
        """The prompts at these positions, counted from 0 over the whole run."""
        source_B, _, window_B = locate(np.asarray(positions, np.int64), self.shares, self.windows, self.seed)
        return [self.prompts[number] for number in (self._first[source_B] + window_B).tolist()]


def _key(ids: NDArray[np.int32]) -> bytes:
    return hashlib.sha256(ids.data).digest()
