"""What the store holds that may be learned from: with consent, personal data masked, in order of time."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.orm import Session

from megalm.errors import UserError
from megalm.feedback.store import Store, Who, owned
from megalm.feedback.tables import Choice, Comparison, Conversation, Edit, Exchange, Owner, Rating

Message = dict[str, Any]
Model = tuple[str, str, int | None, str | None]
"""Name, checkpoint, step, lineage."""
AT_ONCE = 500
"""Exchanges of one query."""


class Source(NamedTuple):
    """The owner, and what they call the conversation."""

    key_name: str
    user_name: str
    conversation: str


@dataclass(frozen=True)
class Judged:
    """An answer, and what was said of it. rating: 1, -1, None; edit: None: none."""

    source: Source
    messages: list[Message]
    content: str
    finish_reason: str
    model: Model
    rating: int | None
    edit: str | None


@dataclass
class Material:
    """judged: the answers of which something was said, by their number in the store. comparisons: (number, number, pick). masked: places, by kind."""

    judged: dict[int, Judged]
    comparisons: list[tuple[int, int, str]]
    without_consent: int
    masked: Counter[str] = field(default_factory=Counter)


def gather(store: Store, who: Who | None = None) -> Material:
    """All of it, or that of one owner."""
    mine = () if who is None else owned(who)
    with store.reading() as session:
        asked = select(func.count()).select_from(Conversation).join(Conversation.owner)
        without = session.scalar(asked.where(Conversation.consent.is_(False), *mine)) or 0
        judged = _answers(session, mine)
        rows = session.execute(
            select(Comparison.a_id, Comparison.b_id, Comparison.pick)
            .join(Comparison.a)
            .join(Choice.exchange)
            .join(Exchange.conversation)
            .join(Conversation.owner)
            .where(Conversation.consent.is_(True), *mine)
            .order_by(Comparison.created, Comparison.id)
        )
        comparisons = [(a, b, pick) for a, b, pick in rows if a in judged and b in judged]
    compared = {number for a, b, _ in comparisons for number in (a, b)}
    judged = {
        number: one
        for number, one in judged.items()
        if one.rating is not None or one.edit is not None or number in compared
    }
    return _masked(Material(judged, comparisons, without))


def _answers(session: Session, mine: tuple[ColumnElement[bool], ...]) -> dict[int, Judged]:
    """Those of which something was said: of a hundred there may be one."""
    in_pairs = select(Comparison.id).where(or_(Comparison.a_id == Choice.id, Comparison.b_id == Choice.id))
    answers = (
        select(
            Choice.id, Choice.exchange_id, Choice.content, Choice.finish_reason, Rating.value, Edit.content
        )
        .join(Choice.exchange)
        .join(Exchange.conversation)
        .join(Conversation.owner)
        .outerjoin(Rating, Rating.choice_id == Choice.id)
        .outerjoin(Edit, Edit.choice_id == Choice.id)
        .where(Conversation.consent.is_(True), *mine)
        .where(or_(Rating.id.is_not(None), Edit.id.is_not(None), in_pairs.exists()))
        .order_by(Exchange.created, Exchange.reply, Choice.number)
    )
    found = session.execute(answers).all()
    asked = _prompts(session, {row[1] for row in found})
    return {
        number: Judged(*asked[exchange][:2], content, reason, asked[exchange][2], rating, edit)
        for number, exchange, content, reason, rating, edit in found
    }


def _prompts(session: Session, exchanges: set[int]) -> dict[int, tuple[Source, list[Message], Model]]:
    """Of each exchange."""
    asked = (
        select(
            Exchange.id,
            Owner.key_name,
            Owner.user_name,
            Conversation.name,
            Exchange.messages,
            Exchange.model,
            Exchange.checkpoint,
            Exchange.step,
            Exchange.lineage,
        )
        .join(Exchange.conversation)
        .join(Conversation.owner)
    )
    found, wanted = {}, sorted(exchanges)
    for start in range(0, len(wanted), AT_ONCE):
        some = asked.where(Exchange.id.in_(wanted[start : start + AT_ONCE]))
        for number, key_name, user_name, name, messages, *model in session.execute(some):
            source = Source(key_name, user_name, name)
            found[number] = (source, messages, (model[0], model[1], model[2], model[3]))
    return found


def _masked(material: Material) -> Material:
    hide = _finder(material.masked)
    for number, judged in material.judged.items():
        material.judged[number] = replace(
            judged,
            # Names and whatever else clients write beside them are nothing to learn from, and may be people's.
            messages=[{"role": one["role"], "content": hide(one["content"])} for one in judged.messages],
            content=hide(judged.content),
            edit=judged.edit and hide(judged.edit),
        )
    return material


def _finder(counts: Counter[str]) -> Callable[[str], str]:
    """What masks a text as the corpus stage does, and counts in `counts`."""
    try:
        from megalm.corpus.clean.pii import MASKS, mask
        from megalm.corpus.clean.pii_patterns import FINDERS
    except ModuleNotFoundError as error:
        raise UserError(
            f"personal data cannot be masked without {error.name}: pip install 'megalm[corpus]'"
        ) from None

    known: dict[
        str, tuple[str, dict[str, int]]
    ] = {}  # each prompt stands before all its answers, and in what follows them

    def hide(text: str) -> str:
        if text not in known:
            masked, found = mask(text, list(FINDERS), MASKS)
            known[text] = masked, dict(found)
        counts.update(known[text][1])
        return known[text][0]

    return hide
