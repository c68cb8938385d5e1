"""An owner's conversations: listed, shown, renamed, deleted, and all that is kept of them at once."""

from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, or_, select
from sqlalchemy.orm import Session, selectinload

from megalm.feedback.store import NAME, Store, Unknown, Who, owned, put_owner, remember_deletion
from megalm.feedback.tables import (
    Choice,
    Comparison,
    Conversation,
    Edit,
    Exchange,
    Owner,
    Rating,
    Table,
    utc_now,
)


def list_conversations(
    store: Store, who: Who, limit: int, before: str | None = None
) -> tuple[list[dict[str, Any]], bool]:
    """Those that were used last, first, and whether there are more. before: the name of the last one seen. Raises Unknown."""
    replies = (
        select(func.count()).where(Exchange.conversation_id == Conversation.id).correlate(Conversation)
    ).scalar_subquery()
    mine = select(Conversation.id).where(
        Conversation.owner_id == select(Owner.id).where(*owned(who)).scalar_subquery()
    )
    newest = Conversation.updated.desc(), Conversation.id.desc()
    with store.reading() as session:
        if before is not None:
            last = _conversation(session, who, before)
            older = and_(Conversation.updated == last.updated, Conversation.id < last.id)
            mine = mine.where(or_(Conversation.updated < last.updated, older))
        # Cut first: the replies are counted of those that are shown.
        page = mine.order_by(*newest).limit(limit + 1).subquery()
        asked = select(Conversation, replies).join(page, page.c.id == Conversation.id).order_by(*newest)
        found = [_told(row, count) for row, count in session.execute(asked)]
    return found[:limit], len(found) > limit


def show_conversation(store: Store, who: Who, name: str) -> dict[str, Any]:
    """All of it. Raises Unknown."""
    with store.reading() as session:
        found = _conversation(session, who, name)
        load = selectinload(Exchange.choices)
        exchanges = session.scalars(
            select(Exchange)
            .where(Exchange.conversation_id == found.id)
            .order_by(Exchange.created, Exchange.id)
            .options(load.selectinload(Choice.rating), load.selectinload(Choice.edit))
        ).all()
        return _told(found, len(exchanges)) | {"exchanges": [_exchange(one) for one in exchanges]}


def change_conversation(
    store: Store, who: Who, name: str, title: str | None = None, consent: bool | None = None
) -> dict[str, Any]:
    """Rename it, or say whether models may be trained on it; None: as it is. Raises Unknown."""
    with store.writing() as session:
        found = _conversation(session, who, name, will_change=True)
        if title is not None:
            found.title = title
        if consent is not None:
            found.consent, found.consent_said = consent, utc_now()
        replies = session.scalar(select(func.count()).where(Exchange.conversation_id == found.id))
        return _told(found, replies or 0)


def delete_conversation(store: Store, who: Who, name: str) -> None:
    """With all that was said in it and of it; an answer that is being written in it is not kept either. Raises Unknown."""
    with store.writing() as session:
        found = _conversation(session, who, name, will_change=True)
        remember_deletion(session, who, name)
        session.execute(delete(Conversation).where(Conversation.id == found.id))
    store.wipe()


def delete_owner(store: Store, who: Who) -> dict[str, int]:
    """All that is kept of somebody, and what is just being written for them; how many rows of each kind were there."""
    with store.writing() as session:
        owner = put_owner(
            session, who
        )  # also where there is none yet: it waits for one that is just being made
        counts = _counts(session, owner)
        remember_deletion(session, who)
        session.execute(delete(Owner).where(Owner.id == owner))
    store.wipe()
    return counts


def users_of(store: Store, key_name: str) -> list[str]:
    """The users of an API key of whom something is kept."""
    with store.reading() as session:
        asked = select(Owner.user_name).where(Owner.key_name == key_name).order_by(Owner.user_name)
        return list(session.scalars(asked))


def _conversation(session: Session, who: Who, name: str, will_change: bool = False) -> Conversation:
    asked = select(Conversation).join(Conversation.owner).where(Conversation.name == name, *owned(who))
    asked = asked.with_for_update(of=Conversation) if will_change else asked
    found = NAME.fullmatch(name) and session.scalar(asked)
    if found is None:
        raise Unknown(f"there is no conversation {name[:100]!r}")
    return found


def _counts(session: Session, owner: int) -> dict[str, int]:
    conversations = select(Conversation.id).where(Conversation.owner_id == owner)
    exchanges = select(Exchange.id).where(Exchange.conversation_id.in_(conversations))
    choices = select(Choice.id).where(Choice.exchange_id.in_(exchanges))
    wanted: dict[type[Table], ColumnElement[bool]] = {
        Conversation: Conversation.owner_id == owner,
        Exchange: Exchange.conversation_id.in_(conversations),
        Choice: Choice.exchange_id.in_(exchanges),
        Rating: Rating.choice_id.in_(choices),
        Edit: Edit.choice_id.in_(choices),
        Comparison: or_(Comparison.a_id.in_(choices), Comparison.b_id.in_(choices)),
    }
    return {
        table.__tablename__: session.scalar(select(func.count()).select_from(table).where(condition)) or 0
        for table, condition in wanted.items()
    }


def _told(row: Conversation, replies: int) -> dict[str, Any]:
    return {
        "id": row.name,
        "title": row.title,
        "consent": row.consent,
        "created": int(row.created.timestamp()),
        "updated": int(row.updated.timestamp()),
        "replies": replies,
    }


def _exchange(row: Exchange) -> dict[str, Any]:
    return {
        "reply": row.reply,
        "parent": row.parent,
        "model": row.model,
        "created": int(row.created.timestamp()),
        "messages": row.messages,
        "choices": [_choice(choice) for choice in row.choices],
        "options": row.options,
    }


def _choice(row: Choice) -> dict[str, Any]:
    rating = row.rating and {
        "value": row.rating.value,
        "reason": row.rating.reason,
        "comment": row.rating.comment,
    }
    return {
        "index": row.number,
        "content": row.content,
        "finish_reason": row.finish_reason,
        "rating": rating,
        "edit": row.edit and row.edit.content,
    }
