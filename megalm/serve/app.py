"""Puts the addresses together."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

import megalm
from megalm.serve import page
from megalm.serve.api import (
    chat,
    completions,
    described,
    embeddings,
    errors,
    features,
    feedback,
    models,
    moderations,
)
from megalm.serve.gate import Gate
from megalm.serve.service import Service
from megalm.serve.swap import follow_releases


def make_app(service: Service) -> FastAPI:
    """The application around `service`, whose models are started by somebody else."""

    @contextlib.asynccontextmanager
    async def living(_: FastAPI) -> AsyncIterator[None]:
        watches = [service.watch_keys(), *follow_releases(service)]
        tasks = [asyncio.create_task(watch) for watch in watches]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    app = FastAPI(
        title="megalm",
        version=megalm.__version__,
        lifespan=living,
        docs_url=None,  # its page would be loaded from elsewhere
        redoc_url=None,
        responses=described.ERRORS,
    )
    app.state.service = service
    app.openapi = lambda: described.describe(app)  # type: ignore[method-assign]
    for part in (chat, completions, embeddings, models, features, moderations, feedback):
        app.include_router(part.router)
    if service.settings.page:
        app.include_router(page.router)
    app.add_exception_handler(errors.ApiError, errors.tell)
    app.add_exception_handler(RequestValidationError, errors.tell_invalid)
    app.add_exception_handler(HTTPException, errors.tell_http)
    app.add_exception_handler(Exception, errors.tell_failure)
    app.add_middleware(
        Gate, limits=service.settings.limits, metrics=service.metrics, requests=service.requests
    )
    return app
