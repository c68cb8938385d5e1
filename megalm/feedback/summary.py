"""Counts of what was said, over days, models and reasons; nobody's words are in them."""

from collections import Counter, defaultdict
from datetime import datetime, timedelta, timezone
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from megalm.feedback.store import Store
from megalm.feedback.tables import Choice, Comparison, Conversation, Edit, Exchange, Rating, utc_now


def summary(store: Store, days: int | None = None) -> dict[str, Any]:
    """by_day (UTC; each of the last `days`, or of those with something), by_model, by_reason and totals. days: None: all time."""
    since = datetime.min.replace(tzinfo=timezone.utc)
    if days is not None:
        today = utc_now().replace(hour=0, minute=0, second=0, microsecond=0)
        since = today - timedelta(days=days - 1)
    with store.reading() as session:
        by_day = _by_day(session, since)
        if days is not None:
            for past in range(days):
                by_day[(since + timedelta(days=past)).date().isoformat()] += Counter()
        by_model, neither = _by_model(session, since)
        by_reason = _by_reason(session, since)
        conversations = session.scalar(select(func.count()).where(Conversation.updated >= since))
    kinds = ("up", "down", "comparisons", "edits", "exchanges")
    totals = {kind: sum(counts[kind] for counts in by_day.values()) for kind in kinds}
    return {
        "by_day": [{"day": day} | {kind: by_day[day][kind] for kind in kinds} for day in sorted(by_day)],
        "by_model": [
            {"model": model}
            | {kind: by_model[model][kind] for kind in ("up", "down", "wins", "losses", "ties")}
            for model in sorted(by_model)
        ],
        "by_reason": by_reason,
        "totals": totals | {"conversations": conversations or 0, "neither": neither},
    }


def _by_day(session: Session, since: datetime) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = defaultdict(Counter)

    def take(kind: str, asked: Select[Any]) -> None:
        for day, count in session.execute(asked):
            found[str(day)][kind] += count

    for kind, value in (("up", 1), ("down", -1)):
        take(kind, _daily(Rating.created, since).where(Rating.value == value))
    take("comparisons", _daily(Comparison.created, since))
    take("edits", _daily(Edit.created, since))
    take("exchanges", _daily(Exchange.created, since))
    return found


def _daily(created: InstrumentedAttribute[datetime], since: datetime) -> Select[Any]:
    day = func.date(created)
    return select(day, func.count()).where(created >= since).group_by(day)


def _by_model(session: Session, since: datetime) -> tuple[dict[str, Counter[str]], int]:
    """Of each model, and how often neither of two answers was good."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    rated = (
        select(Exchange.model, Rating.value, func.count())
        .join(Choice, Choice.id == Rating.choice_id)
        .join(Choice.exchange)
        .where(Rating.created >= since)
        .group_by(Exchange.model, Rating.value)
    )
    for model, value, count in session.execute(rated):
        found[model]["up" if value > 0 else "down"] += count
    neither = 0
    for model_a, model_b, pick, count in session.execute(_compared(since)):
        if pick == "neither":
            neither += count
            continue
        for model, kind in zip((model_a, model_b), _OUTCOMES[pick], strict=True):
            found[model][kind] += count
    return found, neither


_OUTCOMES = {"a": ("wins", "losses"), "b": ("losses", "wins"), "tie": ("ties", "ties")}


def _compared(since: datetime) -> Select[Any]:
    a, b, of_a, of_b = aliased(Choice), aliased(Choice), aliased(Exchange), aliased(Exchange)
    counted: Any = (
        select(of_a.model, of_b.model, Comparison.pick, func.count())
        .join(a, a.id == Comparison.a_id)
        .join(b, b.id == Comparison.b_id)
        .join(of_a, of_a.id == a.exchange_id)
        .join(of_b, of_b.id == b.exchange_id)
        .where(Comparison.created >= since)
        .group_by(of_a.model, of_b.model, Comparison.pick)
    )
    return counted


def _by_reason(session: Session, since: datetime) -> list[dict[str, Any]]:
    asked = (
        select(Rating.reason, Rating.value, func.count())
        .where(Rating.created >= since, Rating.reason.is_not(None))
        .group_by(Rating.reason, Rating.value)
        .order_by(func.count().desc(), Rating.reason, Rating.value)
    )
    return [{"reason": reason, "value": value, "count": n} for reason, value, n in session.execute(asked)]
