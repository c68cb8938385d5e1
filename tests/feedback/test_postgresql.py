"""The store in PostgreSQL, on a throw-away server of the test's own; skipped where its programs are not installed."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from megalm.errors import UserError
from megalm.feedback.conversations import (
    delete_conversation,
    delete_owner,
    list_conversations,
    show_conversation,
    users_of,
)
from megalm.feedback.database import connect, parse_url
from megalm.feedback.export import export_lines
from megalm.feedback.migrating import migrate, newest
from megalm.feedback.opinions import Place, compare, edit, rate
from megalm.feedback.store import Store, Unknown, put, put_owner
from megalm.feedback.summary import summary
from megalm.feedback.tables import Conversation, Table, utc_now
from tests.feedback.small import ANN, BOB, say

pytest.importorskip("psycopg")


def programs() -> Path | None:
    """Where initdb and pg_ctl are; Debian keeps them off the path."""
    found = [Path(path).resolve().parent for path in [shutil.which("initdb")] if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in found if (folder / "pg_ctl").exists()), None)


def drop_root() -> None:
    """PostgreSQL does not run as root."""
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.setgroups([])
        os.setgid(nobody.pw_gid)
        os.setuid(nobody.pw_uid)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a server that listens on a socket in its folder alone."""
    where = programs()
    if where is None:
        pytest.skip("PostgreSQL is not installed")
    with tempfile.TemporaryDirectory(
        prefix="megalm-pg-"
    ) as name:  # short: a socket's path has at most 107 bytes
        folder = Path(name)
        if os.getuid() == 0:
            shutil.chown(folder, "nobody")

        def call(program: str, *arguments: str) -> None:
            subprocess.run(
                [str(where / program), "-D", f"{folder}/data", *arguments],
                check=True,
                stdout=subprocess.DEVNULL,
                stdin=subprocess.DEVNULL,
                timeout=120,
                cwd=folder,
                preexec_fn=drop_root,
            )

        call("initdb", "-U", "me", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")
        call("pg_ctl", "start", "-w", "-l", f"{folder}/log", "-o", f"-k {folder} -c listen_addresses=''")
        try:
            yield f"postgresql://me@/postgres?host={folder}"
        finally:
            call("pg_ctl", "stop", "-m", "immediate")


@pytest.fixture
def store(address: str) -> Iterator[Store]:
    """An empty one."""
    with connect(parse_url(address)).begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    store = Store(address)
    yield store
    store.close()


def test_the_steps_make_the_tables_that_the_program_works_with(store: Store) -> None:
    with connect(store.url).connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, Table.metadata) == []


def test_many_servers_may_open_an_empty_or_old_store_at_once(address: str, store: Store) -> None:
    for before in ("DROP SCHEMA public CASCADE; CREATE SCHEMA public", None):
        with connect(store.url).begin() as connection:
            if before is not None:
                connection.execute(text(before))
            else:
                connection.execute(text("DROP TABLE comparisons, deletions"))
                connection.execute(text("ALTER TABLE exchanges DROP COLUMN parent"))
                connection.execute(text("DROP INDEX ix_conversations_owner_id_updated_id"))
                connection.execute(text("ALTER TABLE conversations DROP COLUMN consent_said"))
                connection.execute(text("UPDATE alembic_version SET version_num = '1'"))
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(lambda _: migrate(parse_url(address)), range(4)))
        wanted = None if before is not None else "1"
        assert sorted(map(str, [one for one, _ in found])) == sorted(map(str, [wanted, *[newest()] * 3]))


def test_it_keeps_shows_counts_exports_and_deletes_as_sqlite_does(store: Store, tmp_path: Path) -> None:
    other = Store(f"sqlite:///{tmp_path}/store.db")
    found = []
    for one in (store, other):
        say(one, "r1", "Hands?\0", ["Two.\0", "Ten."], who=ANN)
        say(one, "r2", "Feet?", ["Two.", "Many."], who=BOB, conversation="feet")
        rate(one, ANN, Place("r1", 0), -1, "wrong", "no\0")
        rate(one, ANN, Place("r1", 0), 1, "clear", "yes")
        edit(one, BOB, Place("r2", 0), "Two feet.")
        compare(one, BOB, Place("r2", 1), Place("r2", 0), "b")
        shown = show_conversation(one, ANN, "talk")
        for told in (shown, *shown["exchanges"]):
            for name in ("created", "updated"):
                told.pop(name, None)
        with pytest.raises(Unknown):
            rate(one, BOB, Place("r1", 0), 1)
        listed, more = list_conversations(one, BOB, 1)
        exported = [
            export_lines(one, form, who) for form in ("sft", "preference", "kto") for who in (ANN, BOB)
        ]
        counts = summary(one, 2)
        delete_conversation(one, BOB, "feet")
        gone = (delete_owner(one, ANN), delete_owner(one, BOB), summary(one)["totals"])
        found.append([shown, listed[0]["id"], more, exported, counts, gone])
    assert found[0] == found[1]


def test_many_who_write_at_once_lose_nothing(address: str, store: Store) -> None:
    def write(number: int) -> None:
        reply = f"r{number}"
        say(store, reply, "?", ["!"], conversation=f"c{number % 3}")
        for value in (-1, 1):
            rate(store, ANN, Place(reply, 0), value)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(40)))
    found = summary(store)["totals"]
    assert (found["exchanges"], found["up"], found["down"], found["conversations"]) == (40, 40, 0, 3)


def test_what_is_deleted_while_it_is_being_kept_does_not_come_back(store: Store) -> None:
    begun = utc_now()
    for is_first in (True, False):
        if not is_first:
            say(store, "early", "?", "!")
        with ThreadPoolExecutor(1) as threads:
            with (
                store.writing() as session
            ):  # an answer that is just being kept, for the first time and later
                conversation = {"owner_id": put_owner(session, ANN), "name": "talk"}
                put(session, Conversation, conversation, {"title": "t", "consent": False})
                deleting = threads.submit(delete_owner, store, ANN)
                with pytest.raises(TimeoutError):
                    deleting.result(0.5)
            assert deleting.result(60)["conversations"] == 1
        say(store, f"late-{is_first}", "?", "!", begun=begun)
        assert users_of(store, "key") == []


def test_a_store_of_another_version_is_not_changed_by_looking(address: str, store: Store) -> None:
    assert Store(address, create=False).version == newest()
    with connect(store.url).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '2'"))
    with pytest.raises(UserError, match="older megalm"):
        Store(address, create=False)
    with connect(store.url).begin() as connection:
        connection.execute(
            text("DROP SCHEMA public CASCADE; CREATE SCHEMA public; CREATE TABLE customers (a TEXT)")
        )
    with pytest.raises(UserError, match="is no store of feedback"):
        Store(address, create=False)


def test_a_server_that_does_not_answer_is_told_without_the_password() -> None:
    with pytest.raises(UserError, match="check the address") as error:
        Store("postgresql://me:hidden@127.0.0.1:1/db")
    assert "hidden" not in str(error.value)
