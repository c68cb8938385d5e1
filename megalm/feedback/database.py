"""The database of a store: SQLite by default, PostgreSQL by its address; how connections behave, and transactions."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool

from megalm.errors import UserError

BUSY_SECONDS = 30.0
"""How long SQLite waits for another process that writes."""
WRITES = "writes"
"""Execution option of connections whose transactions write."""
_DRIVERS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg"}


def parse_url(text: str) -> URL:
    """The address of a store; UserError for what is none."""
    try:
        url = make_url(text)
    except ArgumentError:
        raise UserError(f"{text!r} is no address of a database: e.g. sqlite:///feedback.db") from None
    kind = url.get_backend_name() if url.drivername in (*_DRIVERS, *_DRIVERS.values()) else ""
    if kind not in _DRIVERS:
        raise UserError(
            f"the store {url.render_as_string()} is neither sqlite:///FILE nor postgresql://USER@HOST/NAME"
        )
    if kind == "sqlite" and url.database in (None, "", ":memory:"):
        raise UserError(f"the store {text} names no file: e.g. sqlite:///feedback.db")
    return url.set(drivername=_DRIVERS[kind])


def shown(url: URL) -> str:
    """For people to read: without the password and our driver."""
    return url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True)


def file_of(url: URL) -> Path | None:
    """The file of SQLite's, None for a server's."""
    return Path(str(url.database)) if url.get_backend_name() == "sqlite" else None


def connect(url: URL, foreign_keys: bool = True) -> Engine:
    """The engine of a database. foreign_keys: off while tables are rebuilt, which deletes their old ones. UserError without a driver.

    What it says of failures names no values: they are people's words, and would stand in logs.
    """
    if file_of(url) is None:
        try:
            return create_engine(
                url, pool_pre_ping=True, connect_args={"options": "-c timezone=utc"}, hide_parameters=True
            )
        except ModuleNotFoundError:
            raise UserError("a store in PostgreSQL needs psycopg: pip install 'megalm[postgresql]'") from None
    waiting = {"timeout": BUSY_SECONDS, "check_same_thread": False}
    engine = create_engine(url, connect_args=waiting, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where `begin` below says, also before DDL
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")  # what is committed survives a power cut
        connection.execute("PRAGMA secure_delete=ON")  # what is deleted is overwritten
        connection.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that reads first and writes later would be refused, not made to wait, while another writes.
        writes = connection.get_execution_options().get(WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def look(url: URL) -> Engine:
    """An engine that changes nothing of a database, whosever it is."""
    file = file_of(url)
    if file is None:
        return connect(url)
    address = f"{file.absolute().as_uri()}?mode=ro"
    return create_engine(
        url,
        creator=lambda: sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS),
        poolclass=NullPool,
        hide_parameters=True,
    )


def make_file(path: Path) -> None:
    """An empty database that nobody else may read; its companions (-wal, -shm) get the same mode from SQLite."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


@contextlib.contextmanager
def telling(url: URL) -> Iterator[None]:
    """What the database says goes wrong in the block, as a UserError of one line."""
    try:
        yield
    except DBAPIError as error:
        first = (str(error.orig).strip().splitlines() or [type(error.orig).__name__])[0]
        raise UserError(f"the store {shown(url)}: {first}; check the address and who may use it") from None
