"""POST /v1/chat/completions: the next turn of a conversation."""

import asyncio
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from megalm.errors import UserError
from megalm.feedback.tables import utc_now
from megalm.serve.api.clients import client_of, service_of
from megalm.serve.api.described import STREAMED
from megalm.serve.api.errors import ApiError
from megalm.serve.api.kept import keeping_of
from megalm.serve.api.logprobs import chat_logprobs
from megalm.serve.api.options import Asked, asked_of
from megalm.serve.api.reply import REASONS, Reply, stream, stream_of, usage_of, write_whole
from megalm.serve.api.schema import ChatBody, MessageBody
from megalm.serve.api.screened import asker_of, read_messages, screen_of
from megalm.serve.pool import ServedModel
from megalm.serve.screen import FILTERED, OutputScreen
from megalm.serve.service import Client, Service
from megalm.serve.world import Piece

router = APIRouter()


@router.post("/v1/chat/completions", response_model=None, responses=STREAMED)
async def chat(
    body: ChatBody,
    request: Request,
    service: Annotated[Service, Depends(service_of)],
    client: Annotated[Client, Depends(client_of)],
) -> Response | dict[str, Any]:
    """Answer a conversation, in the model's chat template."""
    begun = utc_now()
    model = service.writer(body.model)
    asked = await _asked(body, model, service)
    if service.screen is not None:
        messages = [message.told() for message in body.messages]
        told, refusal = await read_messages(service.screen, asker_of(request, client), messages)
        if refusal is not None:
            return refuse(body, model, asked, refusal)
        if told != messages:  # what is kept of the exchange is what the model saw, too
            body = body.model_copy(update={"messages": [MessageBody(**message) for message in told]})
            asked = await _asked(body, model, service)
    asked = replace(asked, screen=screen_of(service, request, client, model, asked.texts))
    service.admit(model, asked.texts, asked.length)
    reply = Reply("chatcmpl", "chat.completion.chunk" if body.stream else "chat.completion", model)
    keeping = keeping_of(service, client, request, body, asked, reply, begun)
    if body.stream:
        return stream(service, client, reply, asked, body, _Parts(body, model, asked.screen), keeping)
    found = await write_whole(service, client, reply, asked, request)
    if keeping is not None:
        await keeping.keep(found)
    choices = [
        {
            "index": number,
            "message": _message(text.text, asked.screen.refusal(number) if asked.screen else None),
            "logprobs": _logprobs(body, model, text.logprobs),
            "finish_reason": REASONS[text.reason or "stop"],
        }
        for number, text in enumerate(found)
    ]
    return reply.body(choices, usage=usage_of(asked, found))


def refuse(body: ChatBody, model: ServedModel, asked: Asked, refusal: str) -> Response | dict[str, Any]:
    """What is answered where the model is not asked, in the form that was asked for."""
    if body.stream:
        parts = [_part(number, _message(refusal, refusal), None, None) for number in range(body.answers)]
        parts += [_part(number, {}, None, FILTERED) for number in range(body.answers)]
        return stream_of(Reply("chatcmpl", "chat.completion.chunk", model), parts, asked, body)
    choices = [
        {"index": number, "message": _message(refusal, refusal), "logprobs": None, "finish_reason": FILTERED}
        for number in range(body.answers)
    ]
    return Reply("chatcmpl", "chat.completion", model).body(choices, usage=usage_of(asked, []))


def _message(content: str, refusal: str | None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "refusal": refusal}


async def _asked(body: ChatBody, model: ServedModel, service: Service) -> Asked:
    template = model.template
    if template is None:
        raise ApiError(
            400,
            f"{model.name} has no chat template: ask /v1/completions, or start the server with one",
            "model",
        )
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
    messages = [message.told() for message in body.messages]
    try:
        encoded = await asyncio.to_thread(template.encode, messages, add_generation_prompt=True)
    except UserError as error:
        raise ApiError(400, str(error), "messages") from None
    limit = body.max_completion_tokens or body.max_tokens
    top = (body.top_logprobs or 0) if body.logprobs else None
    return asked_of(body, model, [encoded.ids], service.settings.limits, limit, top, model.stops)


class _Parts:
    def __init__(self, body: ChatBody, model: ServedModel, screen: OutputScreen | None) -> None:
        self.body, self.model, self.screen = body, model, screen

    def first(self) -> list[dict[str, Any]]:
        return [
            _part(number, {"role": "assistant", "content": ""}, None, None)
            for number in range(self.body.answers)
        ]

    def of(self, number: int, piece: Piece) -> dict[str, Any]:
        delta = {"content": piece.text} if piece.text or piece.token else {}
        if piece.reason == FILTERED and self.screen is not None:
            delta["refusal"] = self.screen.refusal(number) or ""
        logprobs = _logprobs(self.body, self.model, [piece.token] if piece.token else [])
        return _part(number, delta, logprobs, piece.reason)


def _part(
    number: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, reason: str | None
) -> dict[str, Any]:
    done = None if reason is None else REASONS[reason]
    return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": done}


def _logprobs(body: ChatBody, model: ServedModel, tokens: list[dict[str, Any]]) -> dict[str, Any] | None:
    return chat_logprobs(tokens, model.tokenizer, body.top_logprobs or 0) if body.logprobs else None
