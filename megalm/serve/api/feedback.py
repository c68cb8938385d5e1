"""/v1/feedback: what is kept of conversations, and what their owners say of the answers. Nobody sees another one's."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from megalm.feedback import conversations, opinions
from megalm.feedback.conversations import delete_owner
from megalm.feedback.export import export_lines
from megalm.feedback.forms import Form
from megalm.feedback.opinions import Place
from megalm.feedback.store import Who
from megalm.feedback.summary import summary
from megalm.serve.api.clients import client_of, service_of
from megalm.serve.api.errors import ApiError
from megalm.serve.api.feedback_schema import (
    AnswerBody,
    ComparisonBody,
    ConversationBody,
    EditBody,
    RatingBody,
)
from megalm.serve.api.kept import who_asks
from megalm.serve.keeping import Keeper
from megalm.serve.service import Client, Service

router = APIRouter(prefix="/v1/feedback")
_JSON_LINES = "application/x-ndjson"
_LINES: dict[int | str, dict[str, Any]] = {
    200: {"description": "Records, one a line.", "content": {_JSON_LINES: {}}}
}


def keeper_of(
    service: Annotated[Service, Depends(service_of)], client: Annotated[Client, Depends(client_of)]
) -> Keeper:
    """The store. Raises ApiError (404) where the server keeps nothing."""
    if service.feedback is None:
        raise ApiError(
            404, "this server keeps no feedback: start it with --feedback", code="feedback_disabled"
        )
    return service.feedback


def owner_of(request: Request, client: Annotated[Client, Depends(client_of)]) -> Who:
    """Whose data is meant."""
    return who_asks(request, client)


Kept = Annotated[Keeper, Depends(keeper_of)]
Owner = Annotated[Who, Depends(owner_of)]


@router.get("/conversations")
async def list_conversations(
    keeper: Kept, who: Owner, limit: Annotated[int, Query(ge=1, le=200)] = 50, before: str | None = None
) -> dict[str, Any]:
    """The owner's, those that were used last first; `before`: those behind that one."""
    found, more = await keeper.do(lambda store: conversations.list_conversations(store, who, limit, before))
    return {"object": "list", "data": found, "has_more": more}


@router.get("/conversations/{name}")
async def show_conversation(name: str, keeper: Kept, who: Owner) -> dict[str, Any]:
    """One with all that was said in it and of it."""
    return await keeper.do(lambda store: conversations.show_conversation(store, who, name))


@router.patch("/conversations/{name}")
async def change_conversation(name: str, body: ConversationBody, keeper: Kept, who: Owner) -> dict[str, Any]:
    """Rename it, give or withdraw consent to training on it."""
    return await keeper.do(
        lambda store: conversations.change_conversation(store, who, name, body.title, body.consent)
    )


@router.delete("/conversations/{name}")
async def delete_conversation(name: str, keeper: Kept, who: Owner) -> dict[str, Any]:
    """Delete it with all that was said of it."""
    await keeper.do(lambda store: conversations.delete_conversation(store, who, name))
    return {"id": name, "deleted": True}


@router.post("/ratings", status_code=201)
async def rate(
    body: RatingBody, keeper: Kept, who: Owner, service: Annotated[Service, Depends(service_of)]
) -> dict[str, Any]:
    """Thumbs up or down; a second one of the same answer replaces the first."""
    known = service.settings.feedback_reasons.up if body.value > 0 else service.settings.feedback_reasons.down
    if body.reason is not None and body.reason not in known:
        raise ApiError(400, f"the reasons are {', '.join(known) or 'none'}", "reason")
    place = _place(body)
    await keeper.do(lambda store: opinions.rate(store, who, place, body.value, body.reason, body.comment))
    return {"id": f"rating-{_name(place)}", "object": "feedback.rating", **body.model_dump()}


@router.post("/comparisons", status_code=201)
async def compare(body: ComparisonBody, keeper: Kept, who: Owner) -> dict[str, Any]:
    """Which of two answers to the same messages is better; a second one of the same two replaces the first."""
    a, b = _place(body.a), _place(body.b)
    await keeper.do(lambda store: opinions.compare(store, who, a, b, body.pick))
    return {"id": f"comparison-{_name(a)}-{_name(b)}", "object": "feedback.comparison", **body.model_dump()}


@router.post("/edits", status_code=201)
async def edit(body: EditBody, keeper: Kept, who: Owner) -> dict[str, Any]:
    """What the answer should have been; a second one replaces the first."""
    place = _place(body)
    await keeper.do(lambda store: opinions.edit(store, who, place, body.content))
    return {"id": f"edit-{_name(place)}", "object": "feedback.edit", **body.model_dump()}


@router.delete("/data")
async def delete_data(keeper: Kept, who: Owner) -> dict[str, int]:
    """Delete all that is kept of the owner; how many of each kind that was."""
    return await keeper.do(lambda store: delete_owner(store, who))


@router.get("/summary")
async def summarise(keeper: Kept, days: Annotated[int, Query(ge=1, le=366)] = 30) -> dict[str, Any]:
    """Counts over all owners, without a word of theirs."""
    return await keeper.do(lambda store: summary(store, days))


@router.get("/export", response_class=Response, responses=_LINES)
async def export(keeper: Kept, who: Owner, form: Form) -> Response:
    """JSON lines to train on, of the owner's conversations with consent."""
    lines = await keeper.do(lambda store: export_lines(store, form, who), is_long=True)
    headers = {"Content-Disposition": f'attachment; filename="feedback-{form}.jsonl"'}
    return Response(lines, media_type=_JSON_LINES, headers=headers)


def _place(body: AnswerBody) -> Place:
    return Place(body.reply, body.choice)


def _name(place: Place) -> str:
    return f"{place.reply}-{place.choice}"
