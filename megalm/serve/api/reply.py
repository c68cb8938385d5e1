"""What both kinds of texts have in common when they are answered: streams, usage, numbers for the log."""

import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import Request
from fastapi.responses import StreamingResponse

from megalm.serve.api.errors import ApiError
from megalm.serve.api.options import Asked
from megalm.serve.api.schema import SamplingBody
from megalm.serve.api.texts import Text, add, pieces, whole
from megalm.serve.pool import ServedModel
from megalm.serve.screen import FILTERED
from megalm.serve.service import Client, Service
from megalm.serve.world import Piece

if TYPE_CHECKING:
    from megalm.serve.api.kept import Keeping

REASONS = {"stop": "stop", "length": "length", FILTERED: FILTERED}


class Reply:
    """One request's answer in the making. kind: what its parts call themselves."""

    def __init__(self, prefix: str, kind: str, model: ServedModel) -> None:
        self.id, self.created = f"{prefix}-{uuid.uuid4().hex}", int(time.time())
        self.kind, self.model = kind, model

    def body(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """An answer, or a part of one."""
        head = {"id": self.id, "object": self.kind, "created": self.created, "model": self.model.name}
        head["system_fingerprint"] = self.model.fingerprint[:16]
        return head | {"choices": choices} | more


async def write_whole(
    service: Service, client: Client, reply: Reply, asked: Asked, request: Request
) -> list[Text]:
    """All texts at their ends. Raises ApiError as `pieces` does; what was written until then counts all the same."""
    texts = [Text() for _ in range(asked.texts)]
    try:
        await whole(reply.model, asked, service.settings.limits.request_seconds, request, texts)
    finally:
        service.count(client, reply.model, asked.prompt_tokens, _written(texts))
    return texts


def usage_of(asked: Asked, texts: Sequence[Text]) -> dict[str, int]:
    """Tokens read and written."""
    written = _written(texts)
    return {
        "prompt_tokens": asked.prompt_tokens,
        "completion_tokens": written,
        "total_tokens": asked.prompt_tokens + written,
    }


class Parts(Protocol):
    """Makes the parts of a streamed answer; each kind of answer has its own."""

    def first(self) -> list[dict[str, Any]]:
        """Before any text."""

    def of(self, number: int, piece: Piece) -> dict[str, Any]:
        """Of a piece of the text `number`."""


def stream(
    service: Service,
    client: Client,
    reply: Reply,
    asked: Asked,
    body: SamplingBody,
    parts: Parts,
    keeping: "Keeping | None" = None,
) -> StreamingResponse:
    """Server-sent events: a line `data:` with each part, at last `[DONE]`; an error on the way is a part, too.

    Where the client goes, the texts are dropped. keeping: what keeps the exchange, before its last part is sent.
    """
    wants_usage = _wants_usage(body)

    async def lines() -> AsyncIterator[bytes]:
        more = {"usage": None} if wants_usage else {}
        begun, is_first = time.perf_counter(), True
        texts = [Text() for _ in range(asked.texts)]
        try:
            for choice in parts.first():
                yield _line(reply.body([choice], **more))
            seconds = service.settings.limits.request_seconds
            async for number, piece in pieces(reply.model, asked, seconds, texts):
                if is_first:
                    service.metrics.first_token.labels(reply.model.name).observe(time.perf_counter() - begun)
                    is_first = False
                add(texts[number], piece)
                if keeping is not None and all(text.reason is not None for text in texts):
                    await keeping.keep(texts)
                yield _line(reply.body([parts.of(number, piece)], **more))
            if wants_usage:
                yield _line(reply.body([], usage=usage_of(asked, texts)))
        except ApiError as error:
            yield _line(error.body())
        finally:
            service.count(client, reply.model, asked.prompt_tokens, _written(texts))
            if keeping is not None:
                keeping.leave(texts)
        yield b"data: [DONE]\n\n"

    return _events(lines())


def stream_of(
    reply: Reply, parts: list[dict[str, Any]], asked: Asked, body: SamplingBody
) -> StreamingResponse:
    """The same of an answer that is known already."""

    async def lines() -> AsyncIterator[bytes]:
        more = {"usage": None} if _wants_usage(body) else {}
        for part in parts:
            yield _line(reply.body([part], **more))
        if more:
            yield _line(reply.body([], usage=usage_of(asked, [])))
        yield b"data: [DONE]\n\n"

    return _events(lines())


def _events(lines: AsyncIterator[bytes]) -> StreamingResponse:
    return StreamingResponse(
        lines,
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


def _written(texts: Sequence[Text]) -> int:
    return sum(text.tokens for text in texts)


def _wants_usage(body: SamplingBody) -> bool:
    return body.stream_options is not None and bool(body.stream_options.include_usage)


def _line(part: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(part, ensure_ascii=False)}\n\n".encode()
