"""Continues prompts token by token with one copy of the model, whatever ranks it is spread over."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from megalm.config import Config
from megalm.errors import UserError
from megalm.generate.forward import NextToken
from megalm.generate.mode import decoding
from megalm.generate.request import GenerationOptions
from megalm.generate.sampling import choose
from megalm.generate.text import GrowingText
from megalm.model.gpt import GPT
from megalm.parallel.layout import Layout
from megalm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Completion:
    """What a prompt was continued with.

    tokens: all that were generated, with the token that ended the text. text: without it and cut before a stop string;
    empty where the generator has no tokenizer. finish_reason: `stop` (end of document or stop string) or `length`.
    """

    tokens: list[int]
    text: str
    finish_reason: str


@dataclass
class _Row:
    """A sequence on its way."""

    number: int
    sequence: int
    tokens: list[int]
    prompt_length: int
    limit: int
    text: GrowingText | None
    seen_V: Tensor | None = field(default=None, repr=False)
    finish_reason: str | None = None

    def add(self, token: int, eod_id: int | None) -> str:
        """Append a token, see whether the row ends with it, and return the text that it settles."""
        self.tokens.append(token)
        piece = ""
        if token == eod_id:
            self.finish_reason = "stop"
        elif self.text is not None:
            piece = self.text.push(token)
            if self.text.stopped:
                self.finish_reason = "stop"
        if self.finish_reason is None and len(self.tokens) == self.limit:
            self.finish_reason = "length"
        if self.finish_reason is not None and self.text is not None:
            piece += self.text.finish()
            if self.text.stopped:  # the last held-back bytes may complete a stop string
                self.finish_reason = "stop"
        return piece

    def completion(self) -> Completion:
        assert self.finish_reason is not None
        text = "" if self.text is None else self.text.text
        return Completion(self.tokens[self.prompt_length :], text, self.finish_reason)


def context_length(config: Config) -> int:
    """Tokens that prompt and continuation may have together.

    The position table's size, or without a table the longer of `model.max_sequence_length` and the training sequences.
    """
    if config.model.position_embedding in ("learned", "sinusoidal"):
        return config.model.max_sequence_length
    return max(config.model.max_sequence_length, config.batch.seq_length)


class Generator:
    """Generates with `chunks`, this rank's parts of the model under `layout`; all ranks of its copy make the same calls.

    The model may be in training: what generating changes of its state is put back (see `decoding`).
    """

    def __init__(
        self,
        chunks: Sequence[GPT],
        layout: Layout,
        context_length: int,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        """With a tokenizer, texts end at its end-of-document token or a stop string, and only its ids are drawn."""
        # other copies of the model, which would hold some of its experts, decode other prompts
        assert layout.ep_size == 1
        self.chunks = chunks
        self.layout = layout
        self.context_length = context_length
        self.tokenizer = tokenizer
        # the first tensor-parallel rank of the last stage: the group's ranks are ordered by stage
        self.chooser = dist.get_global_rank(layout.groups.mp, (layout.pp_size - 1) * layout.tp_size)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        sequences: Sequence[int] | None = None,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[Completion]:
        """Continue each of `prompts` (token ids, not empty); the result is the same on every rank.

        sequences: numbers that set the prompts' random draws apart, by default 0, 1, ...; a prompt's result depends on its
        own number and on no other prompt. on_text: called with (index of the prompt, piece of its text) as pieces come.
        Raises UserError as `check` does.
        """
        rows = self._open(prompts, options, range(len(prompts)) if sequences is None else sequences)
        with decoding(self.chunks):
            self._decode(rows, options, on_text)
        return [row.completion() for row in rows]

    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        """Raise UserError where a prompt leaves no room in the context."""
        for number, prompt in enumerate(prompts):
            assert prompt
            if len(prompt) >= self.context_length:
                raise UserError(
                    f"prompt {number} has {len(prompt)} tokens, but the model's context of {self.context_length} "
                    "has to hold it and at least one more: shorten it"
                )

    def _open(
        self, prompts: Sequence[Sequence[int]], options: GenerationOptions, sequences: Sequence[int]
    ) -> list[_Row]:
        assert self.tokenizer is not None or not options.stop
        self.check(prompts)
        rows = []
        for number, (prompt, sequence) in enumerate(zip(prompts, sequences, strict=True)):
            limit = min(len(prompt) + options.max_new_tokens, self.context_length)
            text = None if self.tokenizer is None else GrowingText(self.tokenizer, prompt, options.stop)
            rows.append(_Row(number, sequence, list(prompt), len(prompt), limit, text))
        return rows

    def _decode(
        self, rows: list[_Row], options: GenerationOptions, on_text: Callable[[int, str], None] | None
    ) -> None:
        eod_id = None if self.tokenizer is None else self.tokenizer.eod_id
        max_length = max((row.limit for row in rows), default=0)
        network = NextToken(self.chunks, self.layout, len(rows), max_length, options.cache)
        active = rows
        while active:
            logits_BV = network.logits([row.tokens for row in active], [row.number for row in active])
            for row, token in zip(active, self._choose(logits_BV, active, options), strict=True):
                piece = row.add(token, eod_id)
                if piece and on_text is not None:
                    on_text(row.number, piece)
            active = [row for row in active if row.finish_reason is None]

    def _choose(self, logits_BV: Tensor | None, rows: list[_Row], options: GenerationOptions) -> list[int]:
        """Next token of each row: one rank picks and tells the others, so that none can go its own way."""
        tokens_B = torch.empty(len(rows), dtype=torch.int64, device=self.layout.device)
        if self.layout.rank == self.chooser:
            assert logits_BV is not None
            if self.tokenizer is not None:
                logits_BV = logits_BV[:, : self.tokenizer.vocab_size]
            if logits_BV.dtype != torch.float64:
                logits_BV = logits_BV.float()
            seen_BV = _seen(rows, logits_BV) if options.repetition_penalty != 1 else None
            steps = [len(row.tokens) - row.prompt_length for row in rows]
            tokens_B.copy_(choose(logits_BV, options, [row.sequence for row in rows], steps, seen_BV))
        if self.layout.tp_size * self.layout.pp_size > 1:
            dist.broadcast(tokens_B, self.chooser, group=self.layout.groups.mp)
        return tokens_B.tolist()


def _seen(rows: list[_Row], logits_BV: Tensor) -> Tensor:
    """Which tokens each row's prompt and text hold, brought up to date by the last token of each."""
    for row in rows:
        if row.seen_V is None:
            row.seen_V = torch.zeros(logits_BV.shape[1], dtype=torch.bool, device=logits_BV.device)
            row.seen_V[torch.tensor(row.tokens, device=logits_BV.device)] = True
        row.seen_V[row.tokens[-1]] = True
    return torch.stack([row.seen_V for row in rows if row.seen_V is not None])
