"""GET /v1/models, and what looks after the server asks: /health, /ready, /metrics."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from megalm.checkpoint.directory import CHECKPOINTS
from megalm.serve.api.clients import known, service_of
from megalm.serve.api.errors import ApiError
from megalm.serve.pool import ServedModel
from megalm.serve.service import Service

router = APIRouter()


@router.get("/v1/models", dependencies=[Depends(known)])
async def models(service: Annotated[Service, Depends(service_of)]) -> dict[str, Any]:
    """The models that may be asked."""
    return {"object": "list", "data": [_told(model) for model in service.pool.models.values()]}


@router.get("/v1/models/{name:path}", dependencies=[Depends(known)])
async def model(name: str, service: Annotated[Service, Depends(service_of)]) -> dict[str, Any]:
    """One of them."""
    return _told(service.model(name))


@router.get("/health")
async def health() -> dict[str, str]:
    """Whether the server is alive."""
    return {"status": "alive"}


@router.get("/ready")
async def ready(service: Annotated[Service, Depends(service_of)]) -> dict[str, str]:
    """Whether all models can be asked; 503 where one cannot, and while the server ends."""
    if service.is_draining or not service.pool.is_ready:
        raise ApiError(
            503, "the server ends" if service.is_draining else "a model is being started", retry_after=5
        )
    return {"status": "ready"}


@router.get("/metrics", include_in_schema=False)
async def metrics(service: Annotated[Service, Depends(service_of)]) -> Response:
    """For Prometheus."""
    return Response(service.metrics.text(service.pool), media_type="text/plain; version=0.0.4")


def _told(served: ServedModel) -> dict[str, Any]:
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "megalm",
        "fingerprint": served.fingerprint,
        "context_length": served.context_length,
        "chat": served.template is not None,
        "embeddings": served.is_encoder,
        "release": _release(served),
    }


def _release(served: ServedModel) -> dict[str, Any] | None:
    """Which version is in service, and why no newer one is; None for a model without a release file."""
    version = served.version
    if version is None:
        return None
    checkpoint = Path(version.checkpoint)
    run = checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINTS else checkpoint.parent
    return {
        "version": version.number,
        "checkpoint": str(checkpoint.relative_to(run.parent)),  # not where on this machine
        "step": version.step,
        "promoted": version.promoted,
        "problem": served.problem,
    }
