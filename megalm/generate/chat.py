"""The command `megalm chat`: a conversation with a model, its answers shown as they are written."""

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from megalm.errors import UserError
from megalm.generate.decode import Generator, context_length
from megalm.generate.load import open_model
from megalm.generate.request import ChatRequest, GenerationOptions
from megalm.generate.rows import Completion
from megalm.generate.tokenizing import trained_template
from megalm.parallel.layout import Layout
from megalm.tokenizer.chat import ChatTemplate

FORGET = "/forget"
HELP = f"{FORGET} begins anew, Ctrl-C stops an answer, Ctrl-D ends"

Messages = list[dict[str, str]]


@dataclass
class Conversation:
    """Messages so far, and how the next one comes about. Old turns are forgotten where the context has no room for them."""

    generator: Generator
    template: ChatTemplate
    options: GenerationOptions
    system: str | None = None
    messages: Messages = field(default_factory=list)
    forgotten: int = 0
    """Messages left out of what the model sees."""

    def answer(
        self,
        text: str,
        on_text: Callable[[int, str], None] | None = None,
        is_over: Callable[[], bool] | None = None,
    ) -> Completion:
        """Say `text` and have the model answer. UserError where it alone does not fit; then nothing was said.

        is_over: see `Generator.generate`. Of an answer that it ends what was written stays; where that is nothing, nothing was said.
        """
        self.messages.append({"role": "user", "content": text})
        try:
            prompt = self._prompt()
            (completion,) = self.generator.generate(
                [prompt], self.options, [len(self.messages)], on_text, is_over
            )
        except BaseException:
            self.messages.pop()
            raise
        if completion.finish_reason == "cancelled" and not completion.text:
            self.messages.pop()
        else:
            self.messages.append({"role": "assistant", "content": completion.text})
        return completion

    def forget(self) -> None:
        """Begin anew."""
        self.messages.clear()
        self.forgotten = 0

    def _prompt(self) -> list[int]:
        """The newest messages that leave room for an answer, from one of the user's on."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        room = self.generator.context_length - min(
            self.options.max_new_tokens, self.generator.context_length // 2
        )
        for start in range(self.forgotten, len(self.messages), 2):
            ids = self.template.encode([*first, *self.messages[start:]], add_generation_prompt=True).ids
            if len(ids) <= room:
                self.forgotten = start
                return ids
        raise UserError(
            f"this takes {len(ids)} tokens, and the model's context of {self.generator.context_length} has room for {room} "
            f"beside an answer: say it shorter{', or shorten --system' if self.system else ''}"
        )


class Interrupts:
    """Notes that Ctrl-C was pressed within the block, instead of ending the program."""

    def __init__(self, layout: Layout) -> None:
        self._layout, self._noted = layout, False

    def __enter__(self) -> "Interrupts":
        self._handler = signal.signal(signal.SIGINT, self._note) if self._layout.rank == 0 else None
        return self

    def __exit__(self, *_: object) -> None:
        if self._layout.rank == 0:
            signal.signal(signal.SIGINT, self._handler)

    def _note(self, *_: object) -> None:
        self._noted = True

    def have_come(self) -> bool:
        """Whether it was, as rank 0 knows. Collective."""
        if self._layout.world_size == 1:
            return self._noted
        told = torch.tensor(self._noted, dtype=torch.int32, device=self._layout.device)
        dist.broadcast(told, 0)
        return bool(told)


def main(request: ChatRequest, show: bool = True) -> dict[str, Any]:
    """Talk with a model through standard input, a line a turn; returns the messages. Collective; rank 0 reads and writes.

    An interrupt (Ctrl-C) ends the answer that is being written, or at the prompt the conversation.
    """
    engine, config, tokenizer = open_model(request, "gpt")
    layout = engine.layout
    generator = Generator(engine.chunks, layout, context_length(config), tokenizer, prefix_share=0.5)
    template = trained_template(config, tokenizer, request.chat_template)
    options = request.options([*request.stop, *template.end_of_turn()])
    conversation = Conversation(generator, template, options, request.system)
    speaks = show and layout.rank == 0
    if layout.rank:  # rank 0 says what an interrupt means
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in _lines(speaks):
        if line == FORGET:
            conversation.forget()
            continue
        try:
            with Interrupts(layout) as interrupts:
                conversation.answer(line, _print_piece if speaks else None, interrupts.have_come)
        except UserError as error:  # the conversation goes on
            if layout.rank == 0:
                print(f"megalm: {error}", file=sys.stderr)
            continue
        if speaks:
            print(flush=True)
            if conversation.forgotten:
                print(
                    f"(the first {conversation.forgotten} messages are out of the context)", file=sys.stderr
                )
    return {"messages": conversation.messages}


def _print_piece(_: int, piece: str) -> None:
    print(piece, end="", flush=True)


def _lines(speaks: bool) -> Iterator[str]:
    """What is typed on rank 0, told to all ranks."""
    asks = speaks and sys.stdin.isatty()
    if asks:
        print(HELP, file=sys.stderr)
    while True:
        line: list[str | None] = [None]
        if dist.get_rank() == 0:
            if asks:
                print("> ", end="", flush=True)
            line = [sys.stdin.readline() or None]
        dist.broadcast_object_list(line)
        if line[0] is None:
            return
        if line[0].strip():
            yield line[0].strip()
