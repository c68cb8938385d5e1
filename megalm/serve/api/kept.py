"""Keeps the exchanges of requests that ask for it: OpenAI's `store: true`, with what `metadata` says of it."""

import asyncio
import re
from collections.abc import Sequence
from datetime import datetime

from fastapi import Request

from megalm.feedback.origin import origin_of
from megalm.feedback.store import NAME, Answer, Said, Who
from megalm.feedback.tables import NAME_LENGTH
from megalm.serve.api.errors import ApiError
from megalm.serve.api.options import Asked
from megalm.serve.api.reply import REASONS, Reply
from megalm.serve.api.schema import ChatBody
from megalm.serve.api.texts import Text
from megalm.serve.keeping import Keeper
from megalm.serve.pool import ServedModel
from megalm.serve.service import Client, Service

INTERRUPTED = "interrupted"
"""Finish reason of an answer whose client went before its end."""
_USER = re.compile(rf"[ -~]{{0,{NAME_LENGTH}}}")
_CONSENT = {None: None, "yes": True, "no": False}


def who_asks(request: Request, client: Client) -> Who:
    """The owner of what a request says: the key's name and the header `x-user`. Raises ApiError (400)."""
    user = request.headers.get("x-user", "")
    if not _USER.fullmatch(user):
        raise ApiError(400, f"x-user has at most {NAME_LENGTH} characters of ASCII", "x-user")
    return Who(client.name, user)


class Keeping:
    """One request's exchange: kept once, when all answers are there, or what there is of them when the client goes."""

    def __init__(self, keeper: Keeper, who: Who, said: Said, model: ServedModel) -> None:
        self._keeper, self._who, self._said, self._model = keeper, who, said, model
        self._writing: asyncio.Task[None] | None = None

    async def keep(self, texts: Sequence[Text]) -> None:
        """Keep the exchange; it is on the disk when this returns, and gets there, too, where the request is cancelled.

        Raises ApiError (503).
        """
        await asyncio.shield(self._begin(texts))

    def leave(self, texts: Sequence[Text]) -> None:
        """The request ends: what was shown is kept if nothing was yet."""
        if self._writing is None and any(text.text for text in texts):
            self._begin(texts)

    def _begin(self, texts: Sequence[Text]) -> asyncio.Task[None]:
        answers = [Answer(text.text, _reason(text)) for text in texts]
        checkpoint = self._model.checkpoint
        # The checkpoint's files are read there, not on the thread that serves.
        self._writing = self._keeper.begin(
            self._keeper.do(lambda store: store.keep(self._who, self._said, origin_of(checkpoint), answers))
        )
        return self._writing


def keeping_of(
    service: Service,
    client: Client,
    request: Request,
    body: ChatBody,
    asked: Asked,
    reply: Reply,
    begun: datetime,
) -> Keeping | None:
    """None where the request does not ask for it, or the server keeps nothing. begun: when it came. Raises ApiError (400)."""
    if not body.store or service.feedback is None:
        return None
    told = body.metadata or {}
    for key in ("conversation", "parent"):
        if key in told and not NAME.fullmatch(told[key]):
            raise ApiError(400, f"metadata.{key}: 1 to 64 letters, digits, _ and -", f"metadata.{key}")
    if told.get("consent") not in _CONSENT:
        raise ApiError(400, "metadata.consent is `yes` or `no`", "metadata.consent")
    said = Said(
        reply=reply.id,
        model=reply.model.name,
        messages=[message.told() for message in body.messages],
        options=asked.options,
        conversation=told.get("conversation", reply.id),
        consent=_CONSENT[told.get("consent")],
        parent=told.get("parent"),
        begun=begun,
    )
    return Keeping(service.feedback, who_asks(request, client), said, reply.model)


def _reason(text: Text) -> str:
    return INTERRUPTED if text.reason is None else REASONS.get(text.reason, text.reason)
