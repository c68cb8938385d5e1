"""The store of feedback as the server's addresses use it: on threads of its own, its failures as answers to clients."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from megalm.errors import UserError
from megalm.feedback.store import Store, Unfit, Unknown
from megalm.serve.api.errors import ApiError

logger = logging.getLogger(__name__)

THREADS = 4
T = TypeVar("T")


class Keeper:
    """A store, and what is still being written to it."""

    def __init__(self, url: str) -> None:
        """Open the store, or make one. UserError where that cannot be."""
        self.store = Store(url)
        self._threads = ThreadPoolExecutor(THREADS, "feedback")
        self._long = ThreadPoolExecutor(1, "feedback-long")
        self._open = set[asyncio.Task[Any]]()
        if self.store.version_before not in (None, self.store.version):
            logger.info(
                "the store %s was brought from version %s to %s",
                self.store.shown,
                self.store.version_before,
                self.store.version,
            )

    async def do(self, work: Callable[[Store], T], is_long: bool = False) -> T:
        """What `work` makes of the store; committed when it is there. Raises ApiError (404, 400, 503).

        is_long: it may take minutes, and no answer that is to be kept should wait for it.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._long if is_long else self._threads, work, self.store)
        except Unknown as error:
            raise ApiError(404, str(error)) from None
        except Unfit as error:
            raise ApiError(400, str(error)) from None
        except UserError as error:
            raise ApiError(503, str(error), code="feedback_failed") from None
        except SQLAlchemyError as error:
            logger.error("the store %s: %s", self.store.shown, type(error).__name__, exc_info=error)
            raise ApiError(
                503, "feedback cannot be kept just now; try again", code="feedback_failed", retry_after=5
            ) from None

    def begin(self, writing: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have something written, whoever waits for it and goes."""
        task = asyncio.ensure_future(writing)
        self._open.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._open.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.warning("an exchange was not kept: %s", error)

    async def close(self) -> None:
        """Have all written, and let go of the store."""
        if self._open:
            await asyncio.wait(self._open)
        for threads in (self._threads, self._long):
            await asyncio.to_thread(threads.shutdown)
        await asyncio.to_thread(self.store.close)
