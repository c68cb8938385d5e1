"""POST /v1/embeddings: vectors of texts, by an encoder."""

import asyncio
import base64
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request

from megalm.serve.api.clients import client_of, service_of
from megalm.serve.api.completions import ids_of, texts_of
from megalm.serve.api.errors import ApiError
from megalm.serve.api.schema import EmbeddingBody
from megalm.serve.api.screened import asker_of, read_prompts
from megalm.serve.api.texts import unless_gone
from megalm.serve.pool import ServedModel
from megalm.serve.service import Client, Service
from megalm.serve.world import WorldLost

router = APIRouter()


@router.post("/v1/embeddings", response_model=None)
async def embed(
    body: EmbeddingBody,
    request: Request,
    service: Annotated[Service, Depends(service_of)],
    client: Annotated[Client, Depends(client_of)],
) -> dict[str, Any]:
    """Vectors of length 1 of one text or several."""
    model = service.model(body.model)
    if not model.is_encoder:
        raise ApiError(
            400, f"{model.name} writes texts and makes no vectors: ask it for completions", "model"
        )
    if body.dimensions is not None:
        raise ApiError(400, "the vectors cannot be shortened: leave dimensions out", "dimensions")
    texts = _checked(await ids_of(body.input, model, "input"), model, service)
    if service.screen is not None:
        asker, given = asker_of(request, client), texts_of(body.input)
        texts = _checked(await read_prompts(service.screen, asker, given, texts, model), model, service)
    service.admit(model, len(texts), max(map(len, texts)))
    world, seconds = model.least_busy(), service.settings.limits.request_seconds
    assert world is not None
    try:
        vectors = await unless_gone(request, asyncio.wait_for(world.embed(texts), seconds))
    except WorldLost:
        raise ApiError(503, f"{model.name} was lost meanwhile; ask again", retry_after=5) from None
    except asyncio.TimeoutError:
        raise ApiError(504, f"the vectors took longer than {seconds:g} s") from None
    read = sum(map(len, texts))
    service.count(client, model, read, 0)
    data = [
        {"object": "embedding", "index": number, "embedding": _written(vector, body.encoding_format)}
        for number, vector in enumerate(vectors)
    ]
    return {
        "object": "list",
        "data": data,
        "model": model.name,
        "usage": {"prompt_tokens": read, "total_tokens": read},
    }


def _checked(texts: list[list[int]], model: ServedModel, service: Service) -> list[list[int]]:
    """The same texts. Raises ApiError where there are too many, or one is too long."""
    limits = service.settings.limits
    if len(texts) > limits.max_inputs:
        raise ApiError(400, f"{len(texts)} texts: at most {limits.max_inputs} in a request", "input")
    for ids in texts:
        if wrong := next((token for token in ids if token >= model.tokenizer.vocab_size), None):
            raise ApiError(400, f"the token {wrong} is none of the model's", "input")
        if len(ids) + 2 > model.context_length:  # what frames a text
            raise ApiError(
                400,
                f"a text has {len(ids)} tokens, and the model reads at most {model.context_length - 2}: shorten it",
                "input",
                "context_length_exceeded",
            )
    return texts


def _written(vector: list[float], form: str) -> list[float] | str:
    return vector if form == "float" else base64.b64encode(np.array(vector, "<f4").tobytes()).decode()
