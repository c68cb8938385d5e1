"""Brings a store's tables up to this version's, all steps or none."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, inspect, text

from megalm.errors import UserError
from megalm.feedback.database import WRITES, connect, file_of, look, shown, telling

SCRIPTS = Path(__file__).parent / "migrations"
_LOCK = 0x6D6567616C6D  # "megalm": the number of the lock that servers of one PostgreSQL take in turns


def newest() -> str:
    """The version that this program works with."""
    head = ScriptDirectory(str(SCRIPTS)).get_current_head()
    assert head is not None
    return head


def migrate(url: URL, version: str = "head") -> tuple[str | None, str]:
    """Bring the store to `version`; where it stood before (None: it was empty) and where it stands now.

    UserError for a store of a newer megalm and for another program's file, which are left as they are, and for what is no store.
    """
    _check_own(url)
    engine = connect(url, foreign_keys=False)
    try:
        with telling(url), engine.execution_options(**{WRITES: True}).begin() as connection:
            if file_of(url) is None:
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            before = _version(connection)
            _check(url, before)
            config = Config()
            config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
            config.attributes["connection"] = connection
            command.upgrade(config, version)
            _check_references(url, connection)
            after = _version(connection)
    finally:
        engine.dispose()
    assert after is not None
    return before, after


def current(url: URL) -> str:
    """The version of a store that is only opened, which is this program's. UserError for any other; nothing is written."""
    engine = look(url)
    try:
        with telling(url), engine.connect() as connection:
            found = _version(connection)
    finally:
        engine.dispose()
    if found is None:
        raise UserError(f"{shown(url)} is no store of feedback: it has none of its tables; check the address")
    _check(url, found)
    if found != newest():
        raise UserError(
            f"the store {shown(url)} is of an older megalm (version {found} of its tables, this one works with {newest()}): "
            f"bring it up with megalm feedback migrate --store {shown(url)}"
        )
    return found


def _version(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _check(url: URL, version: str | None) -> None:
    known = {script.revision for script in ScriptDirectory(str(SCRIPTS)).walk_revisions()}
    if version is not None and version not in known:
        raise UserError(
            f"the store {shown(url)} is of a newer megalm (version {version} of its tables, this one knows {newest()}): "
            "use that one"
        )


def _check_own(url: URL) -> None:
    """A file is one program's; in a server's database tables of others may stand beside ours."""
    file = file_of(url)
    if file is None or not file.is_file():
        return
    engine = look(url)
    try:
        with telling(url), engine.connect() as connection:
            names = [] if _version(connection) else inspect(connection).get_table_names()
    finally:
        engine.dispose()
    if names:
        raise UserError(
            f"{shown(url)} is another program's database (it has a table {names[0]!r}): name another file"
        )


def _check_references(url: URL, connection: Connection) -> None:
    """With foreign keys off, a step could leave rows that point nowhere."""
    if file_of(url) is not None and (broken := connection.execute(text("PRAGMA foreign_key_check")).first()):
        raise AssertionError(f"rows of {broken[0]} point to rows that are gone")
