"""The requests that are being answered, and waiting for those of a moment to be over."""

import asyncio
import contextlib
from collections.abc import Iterator


class OpenRequests:
    """Whoever takes something out of use first keeps it from new requests, then waits here for those that may have it."""

    def __init__(self) -> None:
        self._open: set[asyncio.Event] = set()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """A request, until its answer has been sent in whole."""
        over = asyncio.Event()
        self._open.add(over)
        try:
            yield
        finally:
            self._open.discard(over)
            over.set()

    async def over(self, seconds: float) -> None:
        """Return when all requests that are open now have ended, at the latest after `seconds`."""
        waits = [asyncio.ensure_future(one.wait()) for one in self._open]
        if waits:
            _, late = await asyncio.wait(waits, timeout=seconds)
            for wait in late:
                wait.cancel()
