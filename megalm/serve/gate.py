"""What every request passes: size and time of its body, a number by which the log knows it, counts for the metrics."""

import asyncio
import json
import logging
import time
import uuid
from typing import Any

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from megalm.serve.api.errors import ApiError
from megalm.serve.metrics import Metrics
from megalm.serve.requests import OpenRequests
from megalm.serve.settings import LimitSettings

logger = logging.getLogger(__name__)
access = logging.getLogger("megalm.access")
_ID = b"x-request-id"
_NOT_GUESSED = (b"x-content-type-options", b"nosniff")
"""Browsers are not to take what people wrote for a page."""


class Gate:
    """ASGI middleware, the outermost. Neither bodies nor headers are logged: they hold people's words and keys."""

    def __init__(self, app: ASGIApp, limits: LimitSettings, metrics: Metrics, requests: OpenRequests) -> None:
        self.app, self.limits, self.metrics, self.requests = app, limits, metrics, requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with self.requests.one():
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        number, begun, status = uuid.uuid4().hex, time.perf_counter(), 500
        stalled = asyncio.Event()

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", []), (_ID, number.encode()), _NOT_GUESSED]
                message = {**message, "headers": headers}
            try:
                with anyio.fail_after(self.limits.request_seconds):
                    await send(message)
            except TimeoutError:
                stalled.set()
                raise

        scope.setdefault("state", {})["number"] = number
        try:
            try:
                body = await _read(scope, receive, self.limits)
            except ApiError as error:
                await error.response()(scope, receive, tell)
                return
            await self.app(scope, _replaying(body, receive), tell)
        except Exception:
            if not stalled.is_set():
                raise
            logger.warning("request %s: its reader takes nothing any more", number)
        finally:
            seconds = time.perf_counter() - begun
            path = _path_of(scope)
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(seconds)
            line = {
                "id": number,
                "method": scope["method"],
                "path": path,
                "status": status,
                "seconds": round(seconds, 4),
                "client": scope["state"].get("client"),
            }
            access.info("%s", json.dumps(line))


async def _read(scope: Scope, receive: Receive, limits: LimitSettings) -> bytes:
    """The whole body. Raises ApiError where it is too large, or does not come."""
    most = int(limits.max_body_mb * 1e6)
    too_large = ApiError(413, f"the body is larger than {limits.max_body_mb:g} MB")
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > most:
            raise too_large
    end = time.monotonic() + limits.body_seconds
    body = bytearray()
    while True:
        try:
            message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
        except asyncio.TimeoutError:
            raise ApiError(
                408, f"the request did not come in whole within {limits.body_seconds:g} s"
            ) from None
        body += message.get("body", b"")
        if len(body) > most:
            raise too_large
        if not message.get("more_body", False):  # also where the client is gone
            return bytes(body)


def _replaying(body: bytes, receive: Receive) -> Receive:
    """What the application gets instead of `receive`: the body, then what comes of the client."""
    is_first = True

    async def replay() -> Message:
        nonlocal is_first
        if is_first:
            is_first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


def _path_of(scope: Scope) -> str:
    """The address's pattern: what clients make up must not become new series of numbers."""
    route: Any = scope.get("route")
    return str(getattr(route, "path", "unknown"))
