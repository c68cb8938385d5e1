"""The front's view of one copy of a model: a world of processes that is started, asked and ended, and may die."""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megalm import launch
from megalm.errors import UserError
from megalm.serve.settings import ModelSettings, WorldSettings
from megalm.serve.wire import CANCEL, EMBED, EMBEDDED, FAILED, READY, REFUSED, STOP, SUBMIT, Message, encode

logger = logging.getLogger(__name__)

LONGEST_LINE = 1 << 30
"""Bytes of a message at most: what one step of the model brought, log-probabilities of a long prompt among it."""
END_SECONDS = 10.0


class WorldLost(Exception):
    """The processes that were writing an answer are gone."""


class Refused(Exception):
    """The model does not take a request, and says why."""


@dataclass(frozen=True)
class Piece:
    """What came of a request: a piece of the text number `sample`.

    token: id, logprob and top of what was added, where log-probabilities were asked for; prompt: the same of the prompt's tokens but
    the first. tokens: of the text so far. reason: why it ends here; cut: the stop string that it ends before, which is not shown.
    """

    sample: int
    text: str
    token: Message | None = None
    reason: str | None = None
    tokens: int = 0
    prompt: list[Message] | None = None
    cut: str = ""


@dataclass
class _Open:
    """A request that has not ended. texts: that have not; length: tokens that each has room for, with its prompt.

    deliver: takes what comes of it: pieces, vectors, or an exception as the last thing.
    """

    texts: int
    length: int
    deliver: Callable[[Any], None]


class World:
    """One copy. `start` it, then `submit`; `ended` is set once its processes are gone, for whatever reason."""

    def __init__(self, model: ModelSettings, processes: int = 1) -> None:
        """processes: of all worlds on this machine, which share its cores."""
        self.model = model
        self._threads = max(1, launch.available_cores() // processes)
        self.context_length = 0
        self.checkpoint = Path(model.checkpoint)
        """The one that was loaded, once it is ready."""
        self.cache_tokens: int | None = None
        """For which there is memory, prompts and texts together; None: the processes look after it."""
        self.is_ready = False
        self.ended = asyncio.Event()
        self._open: dict[int, _Open] = {}
        self._count = 0
        self._folder = Path(tempfile.mkdtemp(prefix="megalm-serve-"))  # for this user alone
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def texts(self) -> int:
        """Texts that are being written or wait for it."""
        return sum(one.texts for one in self._open.values())

    def rows(self, length: int) -> int:
        """Texts that are written side by side where one of them has room for `length` tokens."""
        if self.cache_tokens is None:
            return self.model.max_rows
        longest = max([length, *(one.length for one in self._open.values())], default=length)
        return min(self.model.max_rows, self.cache_tokens // max(1, longest))

    async def start(self) -> None:
        """Start the processes and wait until the model can be asked. UserError where it cannot be loaded."""
        connected: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = (
            asyncio.get_running_loop().create_future()
        )

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if not connected.done():
                connected.set_result((reader, writer))

        path = self._folder / "socket"
        server = await asyncio.start_unix_server(accept, path, limit=LONGEST_LINE)
        settings = WorldSettings(**self.model.model_dump(), socket=str(path))
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "megalm.serve.worker", settings.model_dump_json()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # answers go over the socket; what goes wrong is told on stderr
            env={"OMP_NUM_THREADS": str(self._threads)} | os.environ,
            start_new_session=True,  # Ctrl-C is the front's
        )
        self._tasks.append(asyncio.create_task(self._await_end()))
        ended: asyncio.Future[Any] = asyncio.ensure_future(self.ended.wait())
        waited: list[asyncio.Future[Any]] = [connected, ended]
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if not connected.done():
                raise UserError(f"{self.model.checkpoint} could not be loaded; what went wrong is told above")
            reader, self._writer = connected.result()
            first = await self._read(reader)
            if first is None or first["event"] == FAILED:
                raise UserError(
                    first["error"] if first else f"{self.model.checkpoint} could not be loaded; see above"
                )
            assert first["event"] == READY
            self.context_length, self.checkpoint = first["context_length"], Path(first["checkpoint"])
            self.cache_tokens = first.get("cache_tokens")
        except BaseException:
            await self.stop()
            raise
        finally:
            ended.cancel()
            server.close()
        self.is_ready = True
        self._tasks.append(asyncio.create_task(self._listen(reader)))

    def submit(
        self,
        prompt: list[int],
        options: dict[str, Any],
        sequence: int,
        deliver: Callable[[Piece | Exception], None],
    ) -> int:
        """Hand in a prompt (token ids); its number, for `release`.

        options: of `GenerationOptions`. sequence: sets its draws apart from those of other prompts with this seed. deliver: takes pieces,
        or WorldLost or Refused as the last thing. Raises WorldLost.
        """
        if not self.is_ready:
            raise WorldLost
        self._count += 1
        length = len(prompt) + options["max_new_tokens"]
        self._open[self._count] = _Open(options["n"], length, deliver)
        told = {"id": self._count, "prompt": prompt, "options": options, "sequence": sequence}
        self._say({"op": SUBMIT} | told)
        return self._count

    async def embed(self, texts: Sequence[list[int]]) -> list[list[float]]:
        """The vectors of texts (token ids), by an encoder. Raises WorldLost."""
        if not self.is_ready:
            raise WorldLost
        self._count += 1
        number, made = self._count, asyncio.get_running_loop().create_future()

        def deliver(item: Piece | Exception | list[list[float]]) -> None:
            if not made.done():
                made.set_exception(item) if isinstance(item, Exception) else made.set_result(item)

        self._open[number] = _Open(len(texts), max(map(len, texts)), deliver)
        self._say({"op": EMBED, "id": number, "texts": texts})
        try:
            vectors: list[list[float]] = await made
        finally:
            self.release(number)
        return vectors

    def release(self, number: int) -> None:
        """Forget a request, and have it dropped where it has not come to its end."""
        if self._open.pop(number, None) is not None:
            self._say({"op": CANCEL, "id": number})

    async def stop(self) -> None:
        """End the processes, at once if they do not end themselves."""
        self.is_ready = False
        self._say({"op": STOP})
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.ended.wait(), END_SECONDS if self._writer else 0)
        if self._process is not None and self._process.returncode is None:
            self._process.kill()  # its ranks die with it
            await self.ended.wait()
        if self._writer is not None:
            self._writer.close()
        for task in self._tasks:
            task.cancel()
        self._lose()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _say(self, message: Message) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode(message))

    async def _read(self, reader: asyncio.StreamReader) -> Message | None:
        try:
            line = await reader.readline()
        except (OSError, ValueError):
            return None
        return json.loads(line) if line.endswith(b"\n") else None

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while (message := await self._read(reader)) is not None:
                if message["event"] == REFUSED:
                    self._end(message["id"], Refused(message["error"]))
                elif message["event"] == EMBEDDED:
                    self._end(message["id"], message["vectors"])
                else:
                    for told in message["of"]:
                        self._take(told["id"], _piece(told))
        finally:
            self.is_ready = False
            self._lose()
            if self._process is not None and self._process.returncode is None:
                self._process.kill()  # nothing that it says is heard any more

    def _take(self, number: int, piece: Piece) -> None:
        one = self._open.get(number)
        if one is None:  # it was cancelled meanwhile
            return
        if piece.reason is not None:
            one.texts -= 1
            if not one.texts:
                del self._open[number]
        one.deliver(piece)

    def _end(self, number: int, item: Any) -> None:
        if one := self._open.pop(number, None):
            one.deliver(item)

    def _lose(self) -> None:
        for number in list(self._open):
            self._end(number, WorldLost())

    async def _await_end(self) -> None:
        assert self._process is not None
        code = await self._process.wait()
        if self.is_ready:
            logger.error("a copy of %s ended (exit code %d)", self.model.checkpoint, code)
        self.is_ready = False
        self.ended.set()


def _piece(told: Message) -> Piece:
    done = told.get("done", {})
    return Piece(
        told["sample"],
        told["text"],
        told.get("token"),
        done.get("reason"),
        told["tokens"],
        told.get("prompt"),
        told.get("cut", ""),
    )
