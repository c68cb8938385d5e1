"""The tables of the store: who said what to which model, what it answered, and what was said of the answers."""

from datetime import datetime, timezone
from typing import Any

from sqlalchemy import (
    JSON,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

NAME_LENGTH = 128
"""Characters of a user's name, at most."""
ID_LENGTH = 64
"""Of what clients call conversations and the server calls answers."""
WORD_LENGTH = 64
"""Of reasons, picks and the like."""


class UtcTime(TypeDecorator[datetime]):
    """Times with their zone: UTC, also where the database knows no zones (SQLite)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To the database."""
        return None if value is None else value.astimezone(timezone.utc)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From the database."""
        if value is None or value.tzinfo is not None:
            return value and value.astimezone(timezone.utc)
        return value.replace(tzinfo=timezone.utc)


class CleanText(TypeDecorator[str]):
    """Texts without the character NUL, which PostgreSQL cannot hold: the replacement character stands in its place."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """To the database."""
        return None if value is None else value.replace("\0", "\ufffd")


def utc_now() -> datetime:
    """The time."""
    return datetime.now(timezone.utc)


class Table(DeclarativeBase):
    """All of them. Constraints have names, by which migrations find them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcTime, dict[str, Any]: JSON, list[dict[str, Any]]: JSON}  # noqa: RUF012
    id: Mapped[int] = mapped_column(primary_key=True, sort_order=-1)


def _of(column: str, index: bool = False, unique: bool = False) -> Any:
    """A column that points to a row without which this one goes, too."""
    return mapped_column(ForeignKey(column, ondelete="CASCADE"), index=index or None, unique=unique or None)


class Owner(Table):
    """Whose data it is: the name of an API key, and the user of it that a request names ("" for none)."""

    __tablename__ = "owners"
    __table_args__ = (UniqueConstraint("key_name", "user_name"),)
    key_name: Mapped[str] = mapped_column(CleanText)
    user_name: Mapped[str] = mapped_column(String(NAME_LENGTH))
    created: Mapped[datetime] = mapped_column(default=utc_now)


class Conversation(Table):
    """Exchanges that belong together. name: what the client calls it. consent: whether models may be trained on it.

    consent_said: when that was said; None: never, or to a megalm that did not note it.
    """

    __tablename__ = "conversations"
    __table_args__ = (
        UniqueConstraint("owner_id", "name"),
        Index("ix_conversations_owner_id_updated_id", "owner_id", "updated", "id"),
    )
    owner_id: Mapped[int] = _of("owners.id")
    name: Mapped[str] = mapped_column(String(ID_LENGTH))
    title: Mapped[str] = mapped_column(CleanText)
    consent: Mapped[bool]
    consent_said: Mapped[datetime | None]
    created: Mapped[datetime] = mapped_column(default=utc_now)
    updated: Mapped[datetime] = mapped_column(default=utc_now, index=True)
    owner: Mapped[Owner] = relationship()
    exchanges: Mapped[list["Exchange"]] = relationship(
        back_populates="conversation", order_by="Exchange.created, Exchange.id", passive_deletes=True
    )


class Exchange(Table):
    """A prompt and its answers. reply: their id. lineage: hash of the checkpoint's manifest. parent: the reply before it."""

    __tablename__ = "exchanges"
    conversation_id: Mapped[int] = _of("conversations.id", index=True)
    reply: Mapped[str] = mapped_column(String(ID_LENGTH), unique=True)
    created: Mapped[datetime] = mapped_column(default=utc_now, index=True)
    model: Mapped[str] = mapped_column(CleanText)
    checkpoint: Mapped[str] = mapped_column(CleanText)
    step: Mapped[int | None]
    lineage: Mapped[str | None] = mapped_column(String(WORD_LENGTH))
    messages: Mapped[list[dict[str, Any]]]
    options: Mapped[dict[str, Any]]
    parent: Mapped[str | None] = mapped_column(String(ID_LENGTH))
    conversation: Mapped[Conversation] = relationship(back_populates="exchanges")
    choices: Mapped[list["Choice"]] = relationship(
        back_populates="exchange", order_by="Choice.number", passive_deletes=True
    )


class Choice(Table):
    """One of an exchange's answers, as the client was shown it; number: from 0."""

    __tablename__ = "choices"
    __table_args__ = (UniqueConstraint("exchange_id", "number"),)
    exchange_id: Mapped[int] = _of("exchanges.id")
    number: Mapped[int]
    content: Mapped[str] = mapped_column(CleanText)
    finish_reason: Mapped[str] = mapped_column(String(WORD_LENGTH))
    exchange: Mapped[Exchange] = relationship(back_populates="choices")
    rating: Mapped["Rating | None"] = relationship(passive_deletes=True)
    edit: Mapped["Edit | None"] = relationship(passive_deletes=True)


class Rating(Table):
    """Thumbs up (1) or down (-1) for an answer, by its owner."""

    __tablename__ = "ratings"
    __table_args__ = (CheckConstraint("value IN (-1, 1)", name="value"),)
    choice_id: Mapped[int] = _of("choices.id", unique=True)
    value: Mapped[int]
    reason: Mapped[str | None] = mapped_column(String(WORD_LENGTH))
    comment: Mapped[str | None] = mapped_column(CleanText)
    created: Mapped[datetime] = mapped_column(default=utc_now, index=True)


class Edit(Table):
    """What its owner would rather have read than an answer."""

    __tablename__ = "edits"
    choice_id: Mapped[int] = _of("choices.id", unique=True)
    content: Mapped[str] = mapped_column(CleanText)
    created: Mapped[datetime] = mapped_column(default=utc_now, index=True)


class Comparison(Table):
    """Which of two answers to the same messages their owner would rather have: a, b, tie or neither."""

    __tablename__ = "comparisons"
    __table_args__ = (
        UniqueConstraint("a_id", "b_id"),
        CheckConstraint("pick IN ('a', 'b', 'tie', 'neither')", name="pick"),
        CheckConstraint("a_id < b_id", name="order"),  # one row for two answers, whichever is named first
    )
    a_id: Mapped[int] = _of("choices.id")
    b_id: Mapped[int] = _of("choices.id", index=True)
    pick: Mapped[str] = mapped_column(String(WORD_LENGTH))
    created: Mapped[datetime] = mapped_column(default=utc_now, index=True)
    a: Mapped[Choice] = relationship(foreign_keys="Comparison.a_id")
    b: Mapped[Choice] = relationship(foreign_keys="Comparison.b_id")


class Deletion(Table):
    """What was deleted lately, by a hash of its name: an answer that was being written then must not bring it back."""

    __tablename__ = "deletions"
    what: Mapped[str] = mapped_column(String(WORD_LENGTH), unique=True)
    time: Mapped[datetime] = mapped_column(default=utc_now)
