"""Models of release files: another version that becomes current takes the place of the one in service, and no request is dropped."""

import asyncio
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from megalm.errors import UserError
from megalm.lineage.record import now
from megalm.release.file import is_release, read_release
from megalm.serve.pool import ServedModel, open_served
from megalm.serve.service import REFRESH_SECONDS, Service
from megalm.serve.settings import ModelSettings, name_of

logger = logging.getLogger(__name__)

FIRST_PAUSE = 5.0
LONGEST_PAUSE = 300.0
"""Seconds before a version that could not be started is tried again; what was in its way may be gone then."""
Stamp = tuple[int, int, int]


def follow_releases(service: Service) -> list[Coroutine[Any, Any, None]]:
    """What has to run for as long as the server lives: one for each release file."""
    return [
        Follower(service, model).run() for model in service.settings.models if is_release(model.checkpoint)
    ]


class Follower:
    """Watches the release file of one model."""

    def __init__(self, service: Service, given: ModelSettings) -> None:
        self.service, self.given, self.name = service, given, name_of(given)
        self._stamp: Stamp | None = None
        self._pause = FIRST_PAUSE
        self._again: float | None = None
        """When what failed is tried again, by the loop's clock."""
        self._leaving: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                await asyncio.sleep(REFRESH_SECONDS)
                await self.look()
        finally:
            for task in self._leaving:
                task.cancel()

    async def look(self) -> None:
        """Where the file has changed, serve what is current in it now; what cannot be served is told, changes nothing, and is tried again."""
        stamp = await asyncio.to_thread(_stamp_of, Path(self.given.checkpoint))
        is_new = stamp != self._stamp
        if not is_new and (self._again is None or asyncio.get_running_loop().time() < self._again):
            return
        self._pause = FIRST_PAUSE if is_new else min(2 * self._pause, LONGEST_PAUSE)
        self._stamp, self._again = stamp, None
        served = self.service.pool.models[self.name]
        assert served.version is not None
        what = "the release file could not be read"
        try:
            number = (await asyncio.to_thread(read_release, self.given.checkpoint)).current
            if number == served.version.number:
                served.problem = None
                return
            what = f"version {number} could not be started"
            logger.info("%s: version %d is being started", self.name, number)
            new = await asyncio.to_thread(open_served, self.given, self.service.pool.processes)
            await new.start()
        except Exception as error:  # whatever it is, what is in service has to stay there
            served.problem = f"{what} at {now()}"  # clients see it: the reason names paths of this machine
            self.service.metrics.swaps.labels(self.name, "failed").inc()
            self._again = asyncio.get_running_loop().time() + self._pause
            logger.error(
                "%s: version %d stays in service, %s: %s; trying again in %.0f s",
                self.name,
                served.version.number,
                what,
                error if isinstance(error, UserError) else repr(error),
                self._pause,
            )
            return
        self._switch(served, new)

    def _switch(self, served: ServedModel, new: ServedModel) -> None:
        """From now on requests find `new`; those that found `served` keep it to their ends. Nothing may be awaited in here."""
        pool = self.service.pool
        pool.models[self.name] = new
        pool.leaving.append(served)
        self.service.metrics.swaps.labels(self.name, "done").inc()
        assert new.version is not None
        logger.info("%s: version %d is in service", self.name, new.version.number)
        task = asyncio.create_task(self._retire(served))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _retire(self, served: ServedModel) -> None:
        await self.service.requests.over(self.service.settings.limits.request_seconds)
        await served.stop()
        self.service.pool.leaving.remove(served)


def _stamp_of(path: Path) -> Stamp | None:
    """What changes with the file; None where it cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
