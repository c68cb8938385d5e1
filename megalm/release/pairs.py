"""Held-out pairs of answers, and how likely a model finds each of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megalm.dataset.answer_rows import answered
from megalm.dataset.chat import encode
from megalm.dataset.preference_records import preference_of
from megalm.engine.base import Engine
from megalm.errors import UserError
from megalm.evaluate.encode import Likelihood, Pair
from megalm.evaluate.likelihood import likelihoods
from megalm.generate.decode import context_length
from megalm.generate.load import open_model
from megalm.generate.request import ModelRequest
from megalm.generate.tokenizing import trained_template
from megalm.tokenizer.chat import ChatTemplate
from megalm.tokenizer.conversations import BadRecord, Conversation
from megalm.tokenizer.records import Broken, read_records


class HeldPair(NamedTuple):
    """A prompt with its chosen and its rejected answer. prompt: the same for pairs of one prompt.

    owner, conversation: the same for pairs of one person and of one conversation; None where the file does not tell.
    """

    prompt: str
    chosen: Conversation
    rejected: Conversation
    owner: str | None
    conversation: str | None


@dataclass(frozen=True)
class Likelihoods:
    """Of each pair's answers (chosen, then rejected), given the prompt: log p in nats, (P, 2), and tokens, (P, 2).

    truncated: answers that were read without the start of their prompts.
    """

    logprobs_P2: NDArray[np.float64]
    tokens_P2: NDArray[np.int64]
    truncated: int

    @property
    def margins_P(self) -> NDArray[np.float64]:
        """By how much the chosen answer is likelier a token (as SimPO has it: Meng et al. 2024, arXiv:2405.14734, equation 4)."""
        mean_P2 = self.logprobs_P2 / self.tokens_P2
        return mean_P2[:, 0] - mean_P2[:, 1]


def read_pairs(files: Sequence[Path]) -> list[HeldPair]:
    """The pairs of JSON or JSONL files, in any shape that `dataset build-preferences` reads; UserError for anything else in them."""
    found = []
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: no such file; export one: megalm feedback export --form preference")
        for record in read_records(path):
            try:
                found.append(_held_pair(record.value))
            except BadRecord as error:
                raise UserError(f"{path} line {record.line}: {error}; mend it or leave it out") from None
    if not found:
        raise UserError(f"{', '.join(map(str, files))}: no pair in it, and without any nothing can be judged")
    return found


def _held_pair(value: object) -> HeldPair:
    if isinstance(value, Broken):
        raise BadRecord("invalid_json", value.problem)
    preference = preference_of(value)
    if preference.kind != "pairs":
        raise BadRecord("no_pair", f"{preference.kind} in place of a chosen and a rejected answer")
    chosen, rejected = preference.conversations()
    told = value if isinstance(value, dict) else {}
    names = (told.get(key) for key in ("owner", "conversation"))
    owner, conversation = (name if isinstance(name, str) else None for name in names)
    return HeldPair(preference.key(), chosen, rejected, owner, conversation)


def read_likelihoods(
    request: ModelRequest, pairs: Sequence[HeldPair], batch_size: int, chat_template: str | None
) -> Likelihoods:
    """Load the request's model and ask it. Collective; every rank returns the same.

    chat_template: a name or file; None: that of the model's training data. UserError where it does not take a conversation.
    """
    engine, config, tokenizer = open_model(request, "gpt")
    template = trained_template(config, tokenizer, chat_template)
    asked = [
        _encoded(conversation, template) for pair in pairs for conversation in (pair.chosen, pair.rejected)
    ]
    return _ask(engine, asked, context_length(config), batch_size)


def _ask(engine: Engine, asked: Sequence[Pair], length: int, batch_size: int) -> Likelihoods:
    logprobs = np.zeros(len(asked))
    counts = np.array([min(len(pair.continuation), length) for pair in asked])

    def keep(found: Sequence[tuple[int, Likelihood]]) -> None:
        for number, likelihood in found:
            logprobs[number] = likelihood.logprob

    likelihoods(engine, asked, length, batch_size, keep)
    truncated = sum(len(pair.context) + len(pair.continuation) > length + 1 for pair in asked)
    return Likelihoods(logprobs.reshape(-1, 2), counts.reshape(-1, 2), truncated)


def _encoded(conversation: Conversation, template: ChatTemplate) -> Pair:
    try:
        ids, mask = encode(conversation, template, "last")
    except BadRecord as error:
        raise UserError(str(error)) from None
    row = answered(np.array(ids), np.array(mask, np.uint8))
    told = row.ids.tolist()
    return Pair(tuple(told[: row.begin]), tuple(told[row.begin :]))
