"""What people wrote, checked by the server's policy before a model sees it."""

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import Request

from megalm.moderation.policy import MASK
from megalm.serve.api.errors import ApiError
from megalm.serve.pool import ServedModel
from megalm.serve.screen import FILTERED, Asker, OutputScreen, Screen
from megalm.serve.service import Client, Service


def asker_of(request: Request, client: Client) -> Asker:
    """As the audit log calls it."""
    return Asker(request.state.number, client.name)


def screen_of(
    service: Service, request: Request, client: Client, model: ServedModel, texts: int
) -> OutputScreen | None:
    """What the texts of an answer pass through, if anything."""
    if service.screen is None:
        return None
    return OutputScreen(service.screen, asker_of(request, client), texts, model.tokenizer)


async def read_messages(
    screen: Screen, asker: Asker, messages: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], str | None]:
    """The messages as the model may see them, and what is answered instead if the last one is blocked.

    Earlier ones that are blocked are emptied: the conversation goes on without what was said in them.
    """
    places = [(number, key) for number, message in enumerate(messages) for key in message if key != "role"]
    texts = [messages[number][key] for number, key in places]
    told = [dict(message) for message in messages]
    refusal = None
    for (number, key), one in zip(places, await screen.read(texts, asker), strict=True):
        told[number][key] = one.text if one.blocked is None else MASK
        if one.blocked is not None and number == len(messages) - 1:
            refusal = refusal or screen.policy.refusal(one.blocked)
    return told, refusal


async def read_prompts(
    screen: Screen, asker: Asker, texts: Sequence[str] | None, prompts: list[list[int]], model: ServedModel
) -> list[list[int]]:
    """Token ids as the model may see them. texts: None: what they spell. Raises ApiError (400) where one is blocked."""
    if texts is None:
        texts = await asyncio.to_thread(lambda: [model.tokenizer.decode(ids) for ids in prompts])
    checked = await screen.read(texts, asker)
    for one in checked:
        if one.blocked is not None:
            raise ApiError(400, screen.policy.refusal(one.blocked), code=FILTERED)
    changed = [one.text != text for text, one in zip(texts, checked, strict=True)]
    if not any(changed):
        return prompts
    new = await asyncio.to_thread(model.tokenizer.encode_batch, [one.text for one in checked])
    return [
        mine if has_changed else old for has_changed, mine, old in zip(changed, new, prompts, strict=True)
    ]
