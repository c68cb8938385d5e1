"""Turns prompts, answers and documents into the token ids whose probability is asked for."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from megalm.errors import UserError
from megalm.evaluate.question import Prompt
from megalm.tokenizer import Tokenizer
from megalm.tokenizer.chat import ChatTemplate

Ids = tuple[int, ...]


class Pair(NamedTuple):
    """Ids of a context (one at least) and of what follows it (one at least), whose probability is asked for."""

    context: Ids
    continuation: Ids


class Likelihood(NamedTuple):
    """log p of a continuation, in nats, and whether each of its tokens is the likeliest one."""

    logprob: float
    is_greedy: bool


class Encoder:
    """template: prompts are conversations that it writes; None: plain text. system: what a conversation begins with.

    begin: the special token that plain texts begin with; None: none, and before a text without context stands the end of another.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None = None,
        system: str | None = None,
        begin: str | None = None,
    ) -> None:
        self.tokenizer, self.template, self.system = tokenizer, template, system
        self.begin: Ids = ()
        if begin is not None:
            number = tokenizer.token_id(begin)
            if number is None:
                known = ", ".join(tokenizer.special_tokens)
                raise UserError(f"--begin-token {begin!r} is no token of the model's (special ones: {known})")
            self.begin = (number,)

    @property
    def before(self) -> Ids:
        """What stands before a text without context."""
        return self.begin or (self.tokenizer.eod_id,)

    def pairs(self, asked: Sequence[tuple[Prompt, str]]) -> list[Pair]:
        """Ids of each prompt and of an answer to it."""
        if self.template is None:
            return self.text_pairs([(prompt.text(), prompt.delimiter + answer) for prompt, answer in asked])
        contexts = {prompt: self.prompt(prompt) for prompt, _ in asked}
        answers = self.tokenizer.encode_batch([answer for _, answer in asked])
        return [
            Pair(contexts[prompt], tuple(answer) or (self.tokenizer.eod_id,))
            for (prompt, _), answer in zip(asked, answers, strict=True)
        ]

    def text_pairs(self, texts: Sequence[tuple[str, str]]) -> list[Pair]:
        """Ids of texts and of what follows them, cut where the context's own ids end; its last spaces belong to what follows.

        So does lm-eval. An empty context is the end of another document.
        """
        moved = [_spaces_moved(context, continuation) for context, continuation in texts]
        contexts: dict[str, Ids] = {context: () for context, _ in moved}
        for context, ids in zip(contexts, self.tokenizer.encode_batch(list(contexts)), strict=True):
            contexts[context] = tuple(ids)
        whole = self.tokenizer.encode_batch([context + continuation for context, continuation in moved])
        return [
            self._cut(contexts[context], tuple(ids)) for (context, _), ids in zip(moved, whole, strict=True)
        ]

    def _cut(self, context: Ids, whole: Ids) -> Pair:
        if not context:
            return Pair(self.before, whole or (self.tokenizer.eod_id,))
        if len(context) < len(whole):
            return Pair(self.begin + context, whole[len(context) :])
        # what follows became a part of the context's last token: that is predicted
        return Pair(self.begin + whole[:-1] or self.before, whole[-1:])

    def prompt(self, prompt: Prompt) -> Ids:
        """Ids of a prompt that is to be answered."""
        if self.template is None:
            return self.text(prompt.text())
        return tuple(self.template.encode(prompt.messages(self.system), add_generation_prompt=True).ids)

    def text(self, text: str) -> Ids:
        """Ids of a text that is to be continued."""
        return (*self.begin, *self.tokenizer.encode(text)) or self.before

    def document(self, text: str, width: int, stride: int) -> list[Pair]:
        """A whole text in windows (see `windows`)."""
        return list(windows(self.tokenizer.encode(text), self.before[0], width, stride))


def _spaces_moved(context: str, continuation: str) -> tuple[str, str]:
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def windows(ids: Sequence[int], first: int, width: int, stride: int) -> Iterator[Pair]:
    """A document as pairs in which each of its tokens follows once, seen with up to `width` tokens before it.

    The first window predicts `width` tokens, from `first` (the end of another document) on; each other the next `stride`, with the
    `width` tokens before the last of them in sight. With a stride of `width` windows have nothing in common, but the last, which
    reaches as far back as the others.
    """
    assert 1 <= stride <= width
    whole = (first, *ids)
    done = 0
    while done < len(ids):
        end = min(len(ids), done + (stride if done else width))
        # whole[end] is the last token to be predicted; `width` tokens before it are seen
        begin = max(0, end - width)
        yield Pair(whole[begin : done + 1], whole[done + 1 : end + 1])
        done = end
