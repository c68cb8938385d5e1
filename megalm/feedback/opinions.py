"""What people say of answers: ratings, comparisons, edits. Each replaces what the same person said of the same before."""

from typing import Literal, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from megalm.feedback.store import NAME, Store, Unfit, Unknown, Who, owned, put
from megalm.feedback.tables import Choice, Comparison, Conversation, Edit, Exchange, Rating, utc_now

Pick = Literal["a", "b", "tie", "neither"]
_MIRRORED: dict[Pick, Pick] = {"a": "b", "b": "a", "tie": "tie", "neither": "neither"}


class Place(NamedTuple):
    """One answer: the reply's id and its number there."""

    reply: str
    choice: int


def rate(
    store: Store, who: Who, place: Place, value: int, reason: str | None = None, comment: str | None = None
) -> None:
    """Thumbs up (1) or down (-1). Raises Unknown."""
    with store.writing() as session:
        values = {"value": value, "reason": reason, "comment": comment, "created": utc_now()}
        put(session, Rating, {"choice_id": _choice(session, who, place).id}, values)


def edit(store: Store, who: Who, place: Place, content: str) -> None:
    """What they would rather have read. Raises Unknown."""
    with store.writing() as session:
        values = {"content": content, "created": utc_now()}
        put(session, Edit, {"choice_id": _choice(session, who, place).id}, values)


def compare(store: Store, who: Who, a: Place, b: Place, pick: Pick) -> None:
    """Which of two answers to the same messages is better. Raises Unknown, and Unfit for answers to others or one answer twice."""
    with store.writing() as session:
        first, second = _choice(session, who, a), _choice(session, who, b)
        if first.id == second.id:
            raise Unfit("a and b are the same answer")
        if first.exchange.messages != second.exchange.messages:
            raise Unfit("a and b answer different messages")
        if first.id > second.id:
            first, second, pick = second, first, _MIRRORED[pick]
        put(
            session,
            Comparison,
            {"a_id": first.id, "b_id": second.id},
            {"pick": pick, "created": utc_now()},
        )


def _choice(session: Session, who: Who, place: Place) -> Choice:
    """Theirs; it stays until the transaction ends."""
    found = NAME.fullmatch(place.reply) and session.scalar(
        select(Choice)
        .join(Choice.exchange)
        .join(Exchange.conversation)
        .join(Conversation.owner)
        .where(Exchange.reply == place.reply, Choice.number == place.choice, *owned(who))
        .with_for_update(of=Choice, read=True, key_share=True)
    )
    if found is None:
        raise Unknown(f"there is no answer {place.choice} of {place.reply[:100]!r}")
    return found
