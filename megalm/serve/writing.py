"""The texts of one HTTP request: its prompts are handed to copies of the model, and their pieces come back in one row."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from megalm.serve.pool import ServedModel
from megalm.serve.world import Piece, World, WorldLost


class Writing:
    """Iterate over it for (number of the text, piece); close it in any case. Texts of a prompt follow each other."""

    def __init__(
        self, model: ServedModel, prompts: Sequence[list[int]], options: dict[str, Any], seconds: float
    ) -> None:
        """options: of `GenerationOptions`. seconds: that it may take. Raises WorldLost where no copy can be asked."""
        self._queue: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue()
        self._each = options.get("n", 1)
        self._left = len(prompts) * self._each
        self._asked: list[tuple[World, int]] = []
        late = (0, TimeoutError())
        self._end = asyncio.get_running_loop().call_later(seconds, self._queue.put_nowait, late)
        try:
            for place, prompt in enumerate(prompts):
                world = model.least_busy()
                if world is None:
                    raise WorldLost
                number = world.submit(prompt, options, place, self._taker(place))
                self._asked.append((world, number))
        except WorldLost:
            self.close()
            raise

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        """Until all texts have ended. Raises WorldLost, Refused, or TimeoutError."""
        while self._left:
            place, item = await self._queue.get()
            if isinstance(item, Exception):
                raise item
            self._left -= item.reason is not None
            yield place * self._each + item.sample, item

    def close(self) -> None:
        """Have the rest dropped."""
        self._end.cancel()
        for world, number in self._asked:
            world.release(number)
        self._asked = []

    def _taker(self, place: int) -> Any:
        return lambda item: self._queue.put_nowait((place, item))
