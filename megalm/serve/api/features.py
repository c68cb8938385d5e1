"""GET /v1/features: what this server can beside writing, for clients that show it, the page above all."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends

import megalm
from megalm.serve.api.clients import known, service_of
from megalm.serve.service import Service

router = APIRouter()


@router.get("/v1/features", dependencies=[Depends(known)])
async def features(service: Annotated[Service, Depends(service_of)]) -> dict[str, Any]:
    """Whether feedback is kept and texts are moderated, and the reasons that ratings can have."""
    return {
        "feedback": service.feedback is not None,
        "moderation": service.screen is not None,
        "reasons": service.settings.feedback_reasons.model_dump(),
        "version": megalm.__version__,
    }
