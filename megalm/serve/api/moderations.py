"""POST /v1/moderations: what the server's policy finds in texts."""

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from megalm.moderation.screen import Checked
from megalm.serve.api.clients import client_of, service_of
from megalm.serve.api.errors import ApiError
from megalm.serve.api.schema import Body, ContentPart
from megalm.serve.service import Client, Service

router = APIRouter()

CATEGORIES = (
    "harassment harassment/threatening hate hate/threatening illicit illicit/violent self-harm self-harm/instructions "
    "self-harm/intent sexual sexual/minors violence violence/graphic"
).split()
"""OpenAI's; clients look for each of them, whatever the policy has."""


class ModerationBody(Body):
    """Of /v1/moderations. model: taken, for clients name one; the policy is what decides."""

    input: str | list[str] | list[ContentPart]
    model: str | None = None


@router.post("/v1/moderations", response_model=None)
async def moderate(
    body: ModerationBody,
    service: Annotated[Service, Depends(service_of)],
    client: Annotated[Client, Depends(client_of)],
) -> dict[str, Any]:
    """Look for all categories of the policy in one text or several; nothing is recorded."""
    if service.screen is None:
        raise ApiError(
            404, "this server has no policy: start it with --moderation", code="moderation_disabled"
        )
    given = [body.input] if isinstance(body.input, str) else body.input
    texts = [one if isinstance(one, str) else one.text for one in given]
    limits = service.settings.limits
    if not texts or len(texts) > limits.max_inputs:
        raise ApiError(400, f"{len(texts)} texts: from 1 to {limits.max_inputs} in a request", "input")
    if (length := sum(map(len, texts))) > limits.max_moderated:
        raise ApiError(400, f"{length} characters: at most {limits.max_moderated} in a request", "input")
    checked = await service.screen.look(texts)
    return {
        "id": f"modr-{uuid.uuid4().hex}",
        "model": service.screen.policy.settings.name,
        "results": [_result(one) for one in checked],
    }


def _result(checked: Checked) -> dict[str, Any]:
    scores = dict.fromkeys(CATEGORIES, 0.0) | checked.scores
    found = {finding.category for finding in checked.findings}
    return {
        "flagged": bool(found),
        "categories": {name: name in found for name in scores},
        "category_scores": scores,
        "category_applied_input_types": {name: ["text"] for name in scores},
    }
