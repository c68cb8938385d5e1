"""The texts of a request as they grow, with what is counted, and how they come to their end or to an early one."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request

from megalm.serve.api.errors import ApiError
from megalm.serve.api.options import Asked
from megalm.serve.pool import ServedModel
from megalm.serve.world import Piece, Refused, WorldLost
from megalm.serve.writing import Writing

T = TypeVar("T")


@dataclass
class Text:
    """One of them: what was shown of it, and how many tokens were written."""

    text: str = ""
    reason: str | None = None
    tokens: int = 0
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    prompt: list[dict[str, Any]] = field(default_factory=list)
    """What was told of the prompt's tokens but the first; of the first text of a prompt alone."""


async def pieces(
    model: ServedModel, asked: Asked, seconds: float, texts: Sequence[Text]
) -> AsyncIterator[tuple[int, Piece]]:
    """(number of the text, piece that may be shown) until all have ended; raises ApiError as `_written` does."""
    async with contextlib.aclosing(_written(model, asked, seconds, texts)) as written:
        if asked.screen is None:
            async for number, piece in written:
                yield number, piece
            return
        async with contextlib.aclosing(asked.screen.through(written)) as shown:
            async for number, piece in shown:
                yield number, piece


async def _written(
    model: ServedModel, asked: Asked, seconds: float, texts: Sequence[Text]
) -> AsyncGenerator[tuple[int, Piece], None]:
    """(number of the text, piece) until all have ended; counts the tokens of `texts`, whether they are shown or not.

    Raises ApiError where the model does not take it, dies, or takes too long.
    """
    try:
        writing = Writing(model, asked.prompts, asked.options, seconds)
    except WorldLost:
        raise ApiError(503, f"{model.name} is being started; come back soon", retry_after=5) from None
    try:
        async for number, piece in writing:
            texts[number].tokens = max(texts[number].tokens, piece.tokens)
            yield number, piece
    except Refused as error:
        raise ApiError(400, str(error)) from None
    except WorldLost:
        raise ApiError(503, f"{model.name} was lost while it wrote; ask again", retry_after=5) from None
    except TimeoutError:
        raise ApiError(504, f"the answer took longer than {seconds:g} s") from None
    finally:
        writing.close()


async def whole(
    model: ServedModel, asked: Asked, seconds: float, request: Request, texts: Sequence[Text]
) -> None:
    """Fill `texts` to their ends; nothing goes on once the client is gone. Raises ApiError as `pieces` does."""

    async def collect() -> None:
        async for number, piece in pieces(model, asked, seconds, texts):
            add(texts[number], piece)

    await unless_gone(request, collect())


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` brings; it is dropped once the client is gone. Raises ApiError (499) then."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(499, "the client is gone")
        return working.result()
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait([working])


def add(text: Text, piece: Piece) -> None:
    """Take a piece."""
    text.text += piece.text
    if piece.token is not None:
        text.logprobs.append(piece.token)
    if piece.prompt is not None:
        text.prompt = piece.prompt
    if piece.reason is not None:
        text.reason = piece.reason


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
