"""The models that are served: for each its tokenizer, its chat template, and copies that are started again when they die."""

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

from megalm.checkpoint.directory import fingerprint, read_config
from megalm.config import Config
from megalm.errors import UserError
from megalm.generate.candidates import check_layout, find_candidates, read_newest_config
from megalm.generate.request import ModelRequest
from megalm.generate.tokenizing import open_tokenizer, trained_template
from megalm.release.file import Version, checkpoint_of, is_release, read_release
from megalm.serve.settings import ModelSettings, name_of
from megalm.serve.world import World
from megalm.tokenizer import Tokenizer
from megalm.tokenizer.chat import ChatTemplate

logger = logging.getLogger(__name__)

LONGEST_PAUSE = 60.0
"""Seconds before a copy that has died again and again is started anew."""
GOOD_SECONDS = 60.0
"""A copy that lived so long is started again at once."""


class ServedModel:
    """One model under its name."""

    def __init__(self, settings: ModelSettings, processes: int, version: Version | None = None) -> None:
        """processes: of all models of the server, which share this machine's cores. version: of a release file.

        UserError for a checkpoint without a tokenizer.
        """
        self.settings, self.name, self.version = settings, name_of(settings), version
        self.problem: str | None = None
        """Why a newer version of its release file has not taken its place."""
        request = ModelRequest(
            checkpoint=settings.checkpoint,
            step=settings.step,
            tensor_model_parallel_size=settings.tensor_model_parallel_size,
            pipeline_model_parallel_size=settings.pipeline_model_parallel_size,
        )
        candidates = find_candidates(request)
        check_layout(request, settings.processes)
        self._describe(candidates[0], read_newest_config(candidates))
        self.context_length = 0
        """Tokens of prompt and answer together; known once a copy has been ready."""
        self.cache_tokens: int | None = None
        """For which a copy has memory, all texts together; None: it is not known."""
        self._processes = processes
        self._worlds: list[World | None] = [None] * settings.copies
        self._keepers: list[asyncio.Task[None]] = []

    def _describe(self, checkpoint: Path, config: Config) -> None:
        """What is told of the model that is served from this checkpoint."""
        self.checkpoint = checkpoint
        self.fingerprint = fingerprint(checkpoint, self.settings.dtype)
        self.created = int(checkpoint.stat().st_mtime)
        self.tokenizer = open_tokenizer(checkpoint, config)
        self.is_encoder = config.model.architecture == "bert"
        """It makes vectors of texts, and writes none."""
        self.template = None
        if not self.is_encoder:
            self.template = _template(config, self.tokenizer, self.settings.chat_template)
        self.stops = self.template.end_of_turn() if self.template else []
        """What ends an answer in a conversation."""

    @property
    def ready(self) -> list[World]:
        """The copies that can be asked."""
        return [world for world in self._worlds if world is not None and world.is_ready]

    @property
    def open_texts(self) -> int:
        """Texts that are being written or wait for it."""
        return sum(world.texts for world in self.ready)

    @property
    def waiting_texts(self) -> int:
        """Those among them that no copy has room for yet."""
        return sum(max(0, world.texts - world.rows(0)) for world in self.ready)

    def free_rows(self, length: int) -> int:
        """Texts that would be written at once, with room for `length` tokens each, their prompts among them."""
        return sum(max(0, world.rows(length) - world.texts) for world in self.ready)

    def least_busy(self) -> World | None:
        """None where no copy can be asked."""
        return min(self.ready, key=lambda world: world.texts, default=None)

    async def start(self) -> None:
        """Start all copies. UserError where one cannot be loaded.

        The first one tells which checkpoint it is that is served: of a run, whose newest one may be damaged. The others, and those that
        take the place of copies that die, are of that one, whatever the run has saved since.
        """
        first = World(self.settings, self._processes)
        worlds = [first]
        try:
            await first.start()
            if first.checkpoint != self.checkpoint:
                self._describe(first.checkpoint, read_config(first.checkpoint))
            pinned = {"checkpoint": str(first.checkpoint), "step": None, "name": self.name}
            self.settings = self.settings.model_copy(update=pinned)
            worlds += [World(self.settings, self._processes) for _ in self._worlds[1:]]
            await asyncio.gather(*(world.start() for world in worlds[1:]))
        except BaseException:
            await asyncio.gather(*(world.stop() for world in worlds))
            raise
        self._worlds = list(worlds)
        self.context_length, self.cache_tokens = first.context_length, first.cache_tokens
        self._keepers = [asyncio.create_task(self._keep(place)) for place in range(len(worlds))]

    async def stop(self) -> None:
        """End all copies."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*(world.stop() for world in self._worlds if world is not None))

    async def _keep(self, place: int) -> None:
        """Start the copy again each time that it ends."""
        pause = 0.0
        while True:
            world = self._worlds[place]
            begun = asyncio.get_running_loop().time()
            if world is not None:
                await world.ended.wait()
                await world.stop()
            lived = asyncio.get_running_loop().time() - begun
            pause = 0.0 if lived > GOOD_SECONDS else min(max(1.0, 2 * pause), LONGEST_PAUSE)
            logger.warning("a copy of %s is started again in %.0f s", self.name, pause)
            await asyncio.sleep(pause)
            self._worlds[place] = None
            try:
                new = World(self.settings, self._processes)
                await new.start()
            except UserError as error:
                logger.error("%s: %s", self.name, error)
            except Exception:  # for want of memory or files, say: it may be there the next time
                logger.exception("%s", self.name)
            else:
                self._worlds[place] = new


class Pool:
    """All models of a server."""

    def __init__(self, models: Sequence[ModelSettings]) -> None:
        """UserError for what is no model."""
        self.processes = sum(model.copies * model.processes for model in models)
        self.models = {name_of(model): open_served(model, self.processes) for model in models}
        self.leaving: list[ServedModel] = []
        """Models whose place another version has taken, while their last texts come to an end."""

    @property
    def default(self) -> ServedModel:
        """The first one."""
        return next(iter(self.models.values()))

    @property
    def is_ready(self) -> bool:
        """Whether each model has a copy that can be asked."""
        return all(model.ready for model in self.models.values())

    def open_texts_of(self, name: str) -> int:
        """Of all versions of a model."""
        return sum(model.open_texts for model in self._running if model.name == name)

    @property
    def _running(self) -> list[ServedModel]:
        return [*self.models.values(), *self.leaving]

    async def start(self) -> None:
        """Start all; where one fails, none stays."""
        try:
            await asyncio.gather(*(model.start() for model in self.models.values()))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End all."""
        await asyncio.gather(*(model.stop() for model in self._running))


def open_served(given: ModelSettings, processes: int) -> ServedModel:
    """The model that settings name, of a release file the current version. UserError for what is no model."""
    if not is_release(given.checkpoint):
        return ServedModel(given, processes)
    if given.step is not None:
        raise UserError(f"{given.checkpoint} names the checkpoint that is in service: leave step out")
    version = read_release(given.checkpoint).now
    checkpoint = str(checkpoint_of(version))
    settings = given.model_copy(update={"checkpoint": checkpoint, "name": name_of(given)})
    return ServedModel(settings, processes, version)


def _template(config: Config, tokenizer: Tokenizer, given: str | None) -> ChatTemplate | None:
    """None for a model that has none, which continues texts alone."""
    try:
        return trained_template(config, tokenizer, given)
    except UserError:
        if given is not None:
            raise
        return None
