"""A world that holds one copy of a model, and writes texts or makes vectors for the front.

`python -m megalm.serve.worker SETTINGS` starts the world's processes, or is one of them; SETTINGS: a `WorldSettings` as JSON.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch.distributed as dist

from megalm import launch
from megalm.checkpoint.directory import find_checkpoint, read_config
from megalm.errors import UserError
from megalm.generate.decode import Generator, context_length
from megalm.generate.embed import Embedder
from megalm.generate.load import open_checkpoint
from megalm.generate.request import GenerationOptions, ModelRequest
from megalm.generate.rows import Event
from megalm.generate.tokenizing import open_tokenizer
from megalm.serve.settings import WorldSettings
from megalm.serve.wire import (
    CANCEL,
    EMBED,
    EMBEDDED,
    FAILED,
    READY,
    REFUSED,
    STOP,
    SUBMIT,
    TOLD,
    Link,
    Message,
)

IDLE_SECONDS = 5.0
"""Between two signs of life to ranks that wait for rank 0, which would give it up otherwise."""


@dataclass
class _Open:
    """A request under the front's number; texts: how many of it have not ended."""

    id: int
    texts: int


class Writer(Protocol):
    """What writes texts: `generate.decode.Generator`, or vLLM behind the same methods."""

    @property
    def busy(self) -> bool:
        """Whether a request is open."""

    def running(self) -> AbstractContextManager[None]:
        """Within it `step` may be called."""

    def submit(self, prompt: Sequence[int], options: GenerationOptions, sequence: int = 0) -> int:
        """Hand in a prompt; its number. sequence: sets its draws apart from those of others with its seed. Raises UserError."""

    def cancel(self, *numbers: int) -> None:
        """Forget requests."""

    def step(self) -> list[Event]:
        """What came of the open requests."""


@dataclass
class WritingWorld:
    """What the ranks of a copy that writes texts do together. link: of rank 0, the others have none."""

    generator: Writer
    link: Link | None
    world_size: int = 1
    open: dict[int, _Open] = field(default_factory=dict)
    """By the generator's number."""

    def run(self) -> None:
        """Answer until the front says stop, or is gone. Collective."""
        with self.generator.running():
            while True:
                for command in commands_of(self.link, self.world_size, self.generator.busy):
                    if command["op"] == STOP:
                        return
                    self._obey(command)
                if self.generator.busy:
                    self._tell(self.generator.step())

    def _obey(self, command: Message) -> None:
        if command["op"] == CANCEL:
            gone = [number for number, one in self.open.items() if one.id == command["id"]]
            self.generator.cancel(*gone)
            for number in gone:
                del self.open[number]
            return
        assert command["op"] == SUBMIT
        try:
            given = command["options"]
            bias = {int(token): value for token, value in given.get("logit_bias", {}).items()}
            options = GenerationOptions(**given | {"logit_bias": bias})
            number = self.generator.submit(command["prompt"], options, command["sequence"])
        except UserError as error:
            if self.link is not None:
                self.link.send({"event": REFUSED, "id": command["id"], "error": str(error)})
            return
        self.open[number] = _Open(command["id"], options.n)

    def _tell(self, events: list[Event]) -> None:
        told = []
        for event in events:
            one = self.open[event.request]
            message: Message = {"id": one.id, "sample": event.sample, "text": event.text}
            message["tokens"] = event.tokens
            if event.token is not None:
                message["token"] = asdict(event.token)
            if event.prompt is not None:
                message["prompt"] = [asdict(token) for token in event.prompt]
            if event.completion is not None:
                message["done"] = {"reason": event.completion.finish_reason}
                if event.cut:
                    message["cut"] = event.cut
                one.texts -= 1
                if not one.texts:
                    del self.open[event.request]
            told.append(message)
        if self.link is not None and told:
            self.link.send({"event": TOLD, "of": told})


@dataclass
class EncodingWorld:
    """What the ranks of an encoder do together."""

    embedder: Embedder
    link: Link | None

    def run(self) -> None:
        """Make vectors until the front says stop, or is gone. Collective."""
        while True:
            commands = commands_of(self.link, self.embedder.engine.layout.world_size, busy=False)
            gone = {command["id"] for command in commands if command["op"] == CANCEL}
            for command in commands:
                if command["op"] == STOP:
                    return
                if command["op"] == EMBED and command["id"] not in gone:
                    vectors = self.embedder.embed(command["texts"], normalize=True)
                    if self.link is not None:
                        vectors_TH = vectors.tolist()
                        self.link.send({"event": EMBEDDED, "id": command["id"], "vectors": vectors_TH})


def commands_of(link: Link | None, world_size: int, busy: bool) -> list[Message]:
    """What rank 0 has been told, on every rank; busy: it does not wait for it. Collective."""
    found: list[Message] = []
    if link is not None:
        found = link.receive(0.0 if busy else IDLE_SECONDS)
    if world_size > 1:
        shared = [found]
        dist.broadcast_object_list(shared)
        found = shared[0]
    return found


def main(settings: WorldSettings) -> None:
    """Load the model and serve it, until the front says stop. Collective over the world."""
    link = Link(settings.socket) if os.environ.get("RANK", "0") == "0" else None
    try:
        world, told = _open(settings, link)
    except UserError as error:
        if link is not None:
            link.send({"event": FAILED, "error": str(error)})
            if not launch.in_world():
                raise SystemExit(2) from None  # the front tells it
        raise
    if link is not None:
        link.send({"event": READY} | told)
    world.run()


def _open(settings: WorldSettings, link: Link | None) -> tuple[WritingWorld | EncodingWorld, Message]:
    """The model in its world, and what the front is to know of it."""
    if settings.backend == "vllm":
        return _open_with_vllm(settings, link)
    engine, config, tokenizer, checkpoint = open_checkpoint(_request(settings), "gpt", "bert")
    told: Message = {"checkpoint": str(checkpoint)}
    if config.model.architecture == "bert":
        embedder = Embedder(engine, config, tokenizer)
        return EncodingWorld(embedder, link), told | {"context_length": embedder.length}
    generator = Generator(
        engine.chunks,
        engine.layout,
        context_length(config),
        tokenizer,
        max_rows=settings.max_rows,
        cache_bytes=None if settings.cache_gib is None else int(settings.cache_gib * 2**30),
        prefix_share=settings.prefix_share,
    )
    told |= {"context_length": generator.context_length, "cache_tokens": generator.cache.tokens}
    return WritingWorld(generator, link, engine.layout.world_size), told


def _open_with_vllm(settings: WorldSettings, link: Link | None) -> tuple[WritingWorld, Message]:
    """Export the model beside the socket, for as long as this copy lives, and have vLLM load it."""
    from megalm.convert.hugging_face import to_hugging_face
    from megalm.serve.vllm import VllmGenerator

    checkpoint = find_checkpoint(settings.checkpoint, settings.step)
    config = read_config(checkpoint)
    exported = Path(settings.socket).parent / "exported"
    to_hugging_face(checkpoint, exported, compare=False)
    tokenizer = open_tokenizer(checkpoint, config)
    generator = VllmGenerator(exported, settings, context_length(config), tokenizer)
    told = {"checkpoint": str(checkpoint), "context_length": generator.context_length}
    return WritingWorld(generator, link), told


def _request(settings: WorldSettings) -> ModelRequest:
    return ModelRequest(
        checkpoint=settings.checkpoint,
        step=settings.step,
        tensor_model_parallel_size=settings.tensor_model_parallel_size,
        pipeline_model_parallel_size=settings.pipeline_model_parallel_size,
        dtype=settings.dtype,
    )


def _start(argument: str) -> int:
    settings = WorldSettings.model_validate_json(argument)
    if settings.processes > 1 and not launch.in_world():
        launch.die_with_parent()
        return launch.supervise([sys.executable, "-m", "megalm.serve.worker", argument], settings.processes)
    if not launch.in_world():
        launch.die_with_parent()
    with launch.guard():
        main(settings)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(_start(sys.argv[1]))
    except UserError as error:
        print(f"megalm: error: {error}", file=sys.stderr)
        sys.exit(2)
