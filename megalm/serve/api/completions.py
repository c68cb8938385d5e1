"""POST /v1/completions: texts that go on from a prompt."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from megalm.serve.api.clients import client_of, service_of
from megalm.serve.api.described import STREAMED
from megalm.serve.api.errors import ApiError
from megalm.serve.api.logprobs import completion_logprobs
from megalm.serve.api.options import DEFAULT_COMPLETION_TOKENS, Asked, asked_of
from megalm.serve.api.reply import REASONS, Reply, stream, usage_of, write_whole
from megalm.serve.api.schema import CompletionBody
from megalm.serve.api.screened import asker_of, read_prompts, screen_of
from megalm.serve.api.texts import Text
from megalm.serve.pool import ServedModel
from megalm.serve.service import Client, Service
from megalm.serve.world import Piece

router = APIRouter()


@router.post("/v1/completions", response_model=None, responses=STREAMED)
async def complete(
    body: CompletionBody,
    request: Request,
    service: Annotated[Service, Depends(service_of)],
    client: Annotated[Client, Depends(client_of)],
) -> Response | dict[str, Any]:
    """Continue one prompt or several, given as text or as token ids."""
    model = service.writer(body.model)
    asked = await _asked(body, model, service)
    if service.screen is not None:
        asker, given = asker_of(request, client), texts_of(body.prompt)
        prompts = await read_prompts(service.screen, asker, given, asked.prompts, model)
        if prompts != asked.prompts:
            asked = await _asked(body.model_copy(update={"prompt": prompts}), model, service)
    asked = replace(asked, screen=screen_of(service, request, client, model, asked.texts))
    service.admit(model, asked.texts, asked.length)
    texts = _prompt_texts(asked, model) if body.echo else [""] * len(asked.prompts)
    heads = [text for text in texts for _ in range(body.answers)]
    reply = Reply("cmpl", "text_completion", model)
    if body.stream:
        return stream(service, client, reply, asked, body, _Parts(body, model, heads))
    found = await write_whole(service, client, reply, asked, request)
    choices = [
        _choice(
            number,
            heads[number] + text.text,
            text.reason,
            _logprobs(body, model, [*_of_prompt(body, asked, found, number), *text.logprobs]),
        )
        for number, text in enumerate(found)
    ]
    return reply.body(choices, usage=usage_of(asked, found))


async def _asked(body: CompletionBody, model: ServedModel, service: Service) -> Asked:
    if body.suffix:
        raise ApiError(400, "texts are not written between two others: leave suffix out", "suffix")
    if body.best_of not in (None, body.answers):
        raise ApiError(400, "best_of is not supported: ask for n texts", "best_of")
    of_prompt = body.logprobs if body.echo else None
    if of_prompt is not None and body.stream:
        raise ApiError(
            400, "log-probabilities of prompts are not streamed: leave echo, logprobs or stream out", "echo"
        )
    if body.max_tokens == 0 and of_prompt is None:
        raise ApiError(
            400, "nothing to write and nothing to tell: max_tokens 0 needs echo and logprobs", "max_tokens"
        )
    prompts = await ids_of(body.prompt, model, "prompt")
    if texts_of(body.prompt) is not None:  # an empty prompt asks for a text from its beginning
        prompts = [ids or [model.tokenizer.eod_id] for ids in prompts]
    max_tokens = body.max_tokens
    if max_tokens is None:
        room = model.context_length - max(map(len, prompts))
        max_tokens = min(DEFAULT_COMPLETION_TOKENS, room) if room > 0 else None
    limits = service.settings.limits
    return asked_of(body, model, prompts, limits, max_tokens, body.logprobs, prompt_logprobs=of_prompt)


async def ids_of(
    given: str | list[str] | list[int] | list[list[int]], model: ServedModel, param: str
) -> list[list[int]]:
    """The token ids of texts, or those that were given. Raises ApiError where there is none."""
    if not given and given != "":
        raise ApiError(400, f"no {param}", param)
    if (texts := texts_of(given)) is not None:
        return await asyncio.to_thread(model.tokenizer.encode_batch, texts)
    return [given] if isinstance(given[0], int) else given  # type: ignore[list-item, return-value]


def texts_of(given: str | list[str] | list[int] | list[list[int]]) -> list[str] | None:
    """The texts; None where token ids were given."""
    if isinstance(given, str):
        return [given]
    return given if given and isinstance(given[0], str) else None  # type: ignore[return-value]


def _of_prompt(
    body: CompletionBody, asked: Asked, found: Sequence[Text], number: int
) -> list[dict[str, Any]]:
    """The tokens of the prompt of the text `number` with what is told of them: nothing of the first, which nothing predicts."""
    if not body.echo or body.logprobs is None:
        return []
    place = number // body.answers
    first: dict[str, Any] = {"id": asked.prompts[place][0], "logprob": None, "top": {}}
    return [first, *found[place * body.answers].prompt]


def _prompt_texts(asked: Asked, model: ServedModel) -> list[str]:
    return [model.tokenizer.decode(prompt) for prompt in asked.prompts]


class _Parts:
    def __init__(self, body: CompletionBody, model: ServedModel, heads: list[str]) -> None:
        self.body, self.model, self.heads = body, model, heads
        self.offsets = [0] * len(heads)  # those of prompts are not streamed

    def first(self) -> list[dict[str, Any]]:
        return []

    def of(self, number: int, piece: Piece) -> dict[str, Any]:
        head, self.heads[number] = self.heads[number], ""
        logprobs = None
        if piece.token is not None:
            logprobs = _logprobs(self.body, self.model, [piece.token], self.offsets[number])
            self.offsets[number] += len(logprobs["tokens"][0]) if logprobs else 0
        return _choice(number, head + piece.text, piece.reason, logprobs)


def _logprobs(
    body: CompletionBody, model: ServedModel, tokens: list[dict[str, Any]], offset: int = 0
) -> dict[str, Any] | None:
    if body.logprobs is None:
        return None
    return completion_logprobs(tokens, model.tokenizer, body.logprobs, offset)


def _choice(number: int, text: str, reason: str | None, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "index": number,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": None if reason is None else REASONS[reason],
    }
