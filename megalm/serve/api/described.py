"""The schema at /openapi.json: errors and streams as this server answers them."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel


class ErrorBody(BaseModel):
    """What went wrong. param: the value that is to blame. code: for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """An answer that is an error."""

    error: ErrorBody


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request cannot be answered, or not now."},
    "5XX": {"model": ErrorAnswer, "description": "The server cannot answer, or not now."},
}
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer, or with `stream` its parts.", "content": {"text/event-stream": {}}}
}


def describe(app: FastAPI) -> dict[str, Any]:
    """The schema of `app`, without the form of errors that FastAPI has by itself."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for address in schema["paths"].values():
            for operation in address.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        app.openapi_schema = schema
    return app.openapi_schema
