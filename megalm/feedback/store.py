"""The store: opens a database, and keeps what was asked and answered."""

import contextlib
import hashlib
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, case, delete, literal, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, sessionmaker

from megalm.errors import UserError
from megalm.feedback.database import WRITES, connect, file_of, make_file, parse_url, shown
from megalm.feedback.migrating import current, migrate
from megalm.feedback.origin import Origin
from megalm.feedback.tables import (
    ID_LENGTH,
    Choice,
    Conversation,
    Deletion,
    Exchange,
    Owner,
    Table,
    utc_now,
)
from megalm.feedback.wiping import Wiper

TITLE_LENGTH = 80
NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{ID_LENGTH}}}")
"""What conversations and replies may be called."""
LONGEST_ANSWER = timedelta(days=1)
"""What was deleted is remembered so long, lest an answer that was being written then brings it back."""
CLOSING_SECONDS = 5.0


class Unknown(Exception):
    """There is no such thing, or it is somebody else's."""


class Unfit(Exception):
    """What is said cannot be said of that."""


@dataclass(frozen=True)
class Who:
    """Whose data it is: the name of the API key, and the user of it that the request names ("" for none)."""

    key_name: str
    user_name: str


@dataclass(frozen=True)
class Answer:
    """One of a reply's."""

    content: str
    finish_reason: str


@dataclass(frozen=True)
class Said:
    """A prompt. reply: the id of its answers.

    consent: None: as it was said before in the conversation, where it was not: no. parent: the reply that it follows or is an
    alternative to. begun: when all this was said, which may be long before its answers are there.
    """

    reply: str
    model: str
    messages: list[dict[str, Any]]
    options: dict[str, Any]
    conversation: str
    consent: bool | None = None
    parent: str | None = None
    begun: datetime = field(default_factory=utc_now)


class _Deleted(Exception):
    """It was deleted while it was being written."""


class Store:
    """Safe to use from several threads and processes."""

    def __init__(self, url: str, create: bool = True) -> None:
        """Open it. create: where there is none, make one, and bring its tables up to this version; else nothing is changed.

        UserError where that cannot be, and without `create` for a store of an older version and for what is no store.
        """
        self.url = parse_url(url)
        file = file_of(self.url)
        if file is not None and not file.exists() and not create:
            raise UserError(f"{file}: there is no such store; check the address (sqlite:///FILE)")
        self.version_before: str | None
        if create:
            if file is not None:
                make_file(file)
            self.version_before, self.version = migrate(self.url)
        else:
            self.version_before = self.version = current(self.url)
        self._engine = connect(self.url)
        is_file = file is not None
        # A snapshot, so that all parts of an answer are of one moment; SQLite's transactions are snapshots anyway.
        reading = (
            self._engine if is_file else self._engine.execution_options(isolation_level="REPEATABLE READ")
        )
        self._reading = sessionmaker(reading)
        self._writing = sessionmaker(self._engine.execution_options(**{WRITES: True}))
        in_turn = threading.Lock()
        self._in_turn = in_turn if is_file else contextlib.nullcontext()
        self._wiper = None if file is None else Wiper(file, in_turn)
        if create:
            self.wipe()  # what was deleted just before a former process ended

    @property
    def shown(self) -> str:
        """Its address, for people to read."""
        return shown(self.url)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that reads."""
        with self._reading.begin() as session:
            yield session

    @contextlib.contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that writes: committed, and on the disk, when the block ends well; undone when it raises."""
        with self._in_turn, self._writing.begin() as session:
            yield session

    def wipe(self) -> None:
        """After something was deleted: what is left of it in SQLite's log of changes goes, too, as soon as nobody reads."""
        if self._wiper is not None:
            self._wiper.wipe()

    def close(self) -> bool:
        """Let go of the database; whether nothing that was deleted is left in its files."""
        is_wiped = self._wiper is None or self._wiper.close(CLOSING_SECONDS)
        self._engine.dispose()
        return is_wiped

    def keep(self, who: Who, said: Said, origin: Origin, answers: Sequence[Answer]) -> None:
        """Keep a prompt and its answers, which the weights of `origin` wrote; a conversation begins with its first ones.

        What was said of the conversation since they were begun holds: consent stays as it was said, what was deleted stays away.
        """
        with contextlib.suppress(_Deleted), self.writing() as session:
            owner = put_owner(session, who)
            now = utc_now()
            new = {
                "title": _title(said.messages),
                "consent": bool(said.consent),
                "consent_said": None if said.consent is None else said.begun,
            }
            known = {"owner_id": owner, "name": said.conversation}
            conversation = put(session, Conversation, known, _consent(said) | {"updated": now}, new)
            # Only now: whoever deletes the two rows has done so, or waits for this transaction.
            if _was_deleted(session, who, said):
                raise _Deleted
            session.add(
                Exchange(
                    conversation_id=conversation,
                    reply=said.reply,
                    created=now,
                    model=said.model,
                    checkpoint=origin.checkpoint,
                    step=origin.step,
                    lineage=origin.lineage,
                    messages=said.messages,
                    options=said.options,
                    parent=said.parent,
                    choices=[
                        Choice(number=number, content=one.content, finish_reason=one.finish_reason)
                        for number, one in enumerate(answers)
                    ],
                )
            )


def owned(who: Who) -> tuple[ColumnElement[bool], ...]:
    """Of a query with owners: only what is theirs."""
    return (Owner.key_name == who.key_name, Owner.user_name == who.user_name)


def put_owner(session: Session, who: Who) -> int:
    """The id of their row, which nobody else changes until the transaction ends."""
    return put(session, Owner, {"key_name": who.key_name, "user_name": who.user_name}, {})


def remember_deletion(session: Session, who: Who, conversation: str | None = None) -> None:
    """Of a conversation, or of all that is theirs, in the transaction that deletes it. Nobody's name is written for it."""
    now = utc_now()
    session.execute(delete(Deletion).where(Deletion.time < now - LONGEST_ANSWER))
    put(session, Deletion, {"what": _hash_of(who, conversation)}, {"time": now})


def put(
    session: Session,
    table: type[Table],
    key: dict[str, Any],
    values: dict[str, Any],
    new: dict[str, Any] | None = None,
) -> int:
    """Make the row of `key`, or set `values` of the one that is there; its id. new: values of a row that is made."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    statement = insert(table).values(
        **key, **(new or {}), **{k: v for k, v in values.items() if k not in (new or {})}
    )
    # What is set is never nothing: so the row is locked, and its id comes back.
    made = statement.on_conflict_do_update(index_elements=list(key), set_=values or key).returning(table.id)
    return int(session.execute(made).scalar_one())


def _consent(said: Said) -> dict[str, Any]:
    """What a conversation is told by it, unless something else was said later."""
    if said.consent is None:
        return {}
    before, said_before = Conversation.consent, Conversation.consent_said
    is_later = or_(said_before.is_(None), said_before < said.begun)
    begun = literal(said.begun, said_before.type)
    return {
        "consent": case((is_later, said.consent), else_=before),
        "consent_said": case((is_later, begun), else_=said_before),
    }


def _was_deleted(session: Session, who: Who, said: Said) -> bool:
    """Whether all of theirs, or the conversation, was deleted since it was begun."""
    names = [_hash_of(who, None), _hash_of(who, said.conversation)]
    asked = select(Deletion.id).where(Deletion.what.in_(names), Deletion.time >= said.begun).limit(1)
    return session.scalar(asked) is not None


def _hash_of(who: Who, conversation: str | None) -> str:
    parts = [who.key_name, who.user_name, *([] if conversation is None else [conversation])]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _title(messages: list[dict[str, Any]]) -> str:
    asked = next((message["content"] for message in messages if message["role"] == "user"), "")
    return " ".join(asked.split())[:TITLE_LENGTH]
